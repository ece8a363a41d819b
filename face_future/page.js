// One card for each picture; nothing leaves this page but the picture itself, and only to this service.
'use strict';
const $ = (q, at = document) => at.querySelector(q);
const make = id => { const made = $('#' + id).content.firstElementChild.cloneNode(true); translate(made); return made; };
const style = new Intl.NumberFormat(LANGUAGE, { style: 'percent', maximumFractionDigits: 0 }), fine = new Intl.NumberFormat(LANGUAGE, { style: 'percent', minimumFractionDigits: 1, maximumFractionDigits: 1 });
const format = (p, f) => LANGUAGE === 'en' ? f.format(p).replace('%', '\u00a0%') : f.format(p);
const percent = p => p >= 0.9995 ? `${t('over')} ${format(0.999, fine)}` : p > 0 && p < 0.0005 ? `${t('under')} ${format(0.001, fine)}` : format(p, p > 0.99 || p < 0.01 ? fine : style);
const ATONCE = 2, TRIES = 4, MANY = 6;
const lower = a => a.lower_threshold;
const words = said => said.verdict === 'real' && said.p_fake >= 0.5 ? t('some') : t(said.verdict);
const REASONS = ['no_face', 'face_too_small', 'face_cut', 'too_dark', 'too_blurred', 'too_compressed', 'faces_left_out', 'close_call', 'views_disagree'];
const reason = code => REASONS.includes(code) ? t(code) : t('reason', { x: code.replaceAll('_', ' ') });
function translate(at) { for (const e of at.querySelectorAll('[data-t]')) e.textContent = t(e.dataset.t); }
// The service's errors in this page's language; its own sentence for those that the table lacks.
const SAME = { leaving: 'not_ready', too_many_scans: 'too_slow', too_many_pieces: 'too_slow' };
function wrong(error) {
  const key = `e_${SAME[error?.code] || error?.code}`, text = t(key, limits ? { mb: limits.max_body_mb, mpx: Math.round(limits.max_pixels / 1e6) } : {});
  return text === key || text.includes('{') ? error?.message : text;
}
const say = text => { $('#status').textContent = text; };

const visit = []; // {card, file, url, answer}
let waiting = [], running = 0, key = '', limits = null, model = null;

const add = files => take([...files].map(file => ({ file, name: file.name || t('pasted') })));
const addLink = link => take([{ link, name: link }]);
const isLink = text => limits?.fetch_urls && /^https?:\/\/\S+$/i.test(text) && text.length <= 2000;

function take(pictures) { // each a file or a link, its name, and perhaps the frame to judge
  $('#dropped').hidden = true;
  if (!pictures.length) return;
  $('#visit').hidden = false; document.body.classList.add('busy');
  say(pictures.length === 1 ? t('judging', { name: pictures[0].name }) : t('judging_n', { n: pictures.length }));
  const older = $('#cards').firstChild; // a new selection comes first, in its own order
  for (const { file, link, frame, name } of pictures) {
    const item = { file, link, frame, name, card: make('card'), url: file && !frame ? URL.createObjectURL(file) : '', tries: 0 };
    const image = $('img', item.card), title = $('.name', item.card);
    title.textContent = frame ? t('frame_name', { name, frame }) : name; title.title = title.textContent; title.id = `name-${visit.length}-${Date.now()}`;
    item.card.setAttribute('aria-labelledby', title.id);
    image.alt = t('your', { name: title.textContent });
    image.addEventListener('error', () => $('.frame', item.card).classList.add('blank')); // a format that this browser can't show
    image.addEventListener('load', () => { $('.frame', item.card).classList.remove('blank'); $('.frame', item.card).classList.toggle('tall', image.naturalHeight > image.naturalWidth); });
    if (item.url) image.src = item.url; else $('.frame', item.card).classList.add('blank'); // until the service shows it
    $('.again', item.card).addEventListener('click', () => { item.tries = 0; enqueue(item); item.card.focus(); });
    const more = $('.more', item.card);
    more.addEventListener('click', () => { const open = item.card.classList.toggle('open'); more.textContent = t(open ? 'less' : 'more'); more.setAttribute('aria-expanded', open); });
    $('#cards').insertBefore(item.card, older);
    visit.push(item); enqueue(item);
  }
  tally();
}

function show(item, part) { for (const p of ['working', 'result', 'failed']) $('.' + p, item.card).hidden = p !== part; $('.more', item.card).hidden = part === 'failed'; }
function step(item, text, share) {
  show(item, 'working'); $('.step', item.card).textContent = text;
  const bar = $('progress', item.card); bar.setAttribute('aria-label', text);
  if (share === undefined) bar.removeAttribute('value'); else bar.value = share;
}

function enqueue(item) { item.failed = false; step(item, t('waiting'), 0); waiting.push(item); next(); }
function next() { while (running < ATONCE && waiting.length) { running++; send(waiting.shift()); } }
function done(item) { running--; tally(); next(); }

function send(item) {
  if (item.gone) return done(item);
  if (limits && item.file?.size > limits.max_body_mb * 1e6) { fail(item, t('too_big', { mb: limits.max_body_mb })); return done(item); }
  const form = new FormData(), request = item.request = new XMLHttpRequest();
  if (item.file) form.append('file', item.file, item.file.name || 'pasted.png');
  request.open('POST', `${item.link ? 'predict/link' : 'predict'}?explain=true&preview=true${item.frame ? `&frame=${item.frame}` : ''}`);
  if (item.link) { request.setRequestHeader('Content-Type', 'application/json'); step(item, t('looking')); }
  if (key) request.setRequestHeader('X-API-Key', key);
  request.upload.onprogress = e => e.lengthComputable && step(item, e.loaded < e.total ? t('sending', { n: Math.round(100 * e.loaded / e.total) }) : t('looking'), e.loaded < e.total ? e.loaded / e.total : undefined);
  request.onload = () => {
    let body = null;
    try { body = JSON.parse(request.responseText); } catch { /* not ours */ }
    if (request.status === 200 && body) succeed(item, body);
    else if (request.status === 401) askKey(item);
    else if ((request.status === 503 || request.status === 429) && ++item.tries < TRIES) return later(item, request);
    else fail(item, wrong(body?.error) || t('answered', { n: request.status }), request.status === 503 || request.status === 429 || request.status >= 500);
    done(item);
  };
  request.timeout = 1000 * (3 * (limits?.timeout || 60) + 15); // the upload, an address, a verdict
  request.onerror = request.ontimeout = () => { fail(item, t('unreachable'), true); done(item); };
  request.onabort = () => done(item);
  request.send(item.link ? JSON.stringify({ url: item.link }) : form);
}

function later(item, request) {
  const seconds = Math.min(30, Math.max(1, Number(request.getResponseHeader('Retry-After')) || 1));
  step(item, t('busy', { n: seconds }));
  setTimeout(() => { running--; if (!item.gone) { waiting.push(item); } next(); }, 1000 * seconds);
}

function askKey(item) {
  fail(item, t(key ? 'key_no' : 'key_ask'), true);
  $('#keyform').hidden = false; $('#key').focus();
}

function fail(item, message, again = false) {
  show(item, 'failed'); item.failed = true; item.answer = null; item.card.classList.add('none');
  $('.failed .why', item.card).textContent = message; $('.again', item.card).hidden = !again;
  say(t('no_verdict', { name: $('.name', item.card).textContent, why: message }));
}

function place(mark, image, left, top, width, height) {
  const x0 = Math.max(0, left), y0 = Math.max(0, top), x1 = Math.min(image.width, left + width), y1 = Math.min(image.height, top + height);
  Object.assign(mark.style, { left: `${100 * x0 / image.width}%`, top: `${100 * y0 / image.height}%`, width: `${100 * (x1 - x0) / image.width}%`, height: `${100 * (y1 - y0) / image.height}%` });
}

// A decimal more where a number and a threshold would read the same.
const shower = (said, answer) => [lower(answer), answer.threshold].some(limit => percent(limit) === percent(said.p_fake)) ? p => format(p, fine) : percent;
const relied = said => said.verdict !== 'unsure' || said.unsure_reasons.includes('close_call');
const called = (faces, a) => { const shown = faces.map(f => shower(f, a)).find(f => f !== percent) || percent; return t('called', { low: shown(lower(a)), high: shown(a.threshold) }); };

function gauge(said, answer, title, number) {
  const threshold = answer.threshold, low = lower(answer), shown = shower(said, answer);
  const said_lines = { p: shown(said.p_fake), low: shown(low), high: shown(threshold) };
  const face = make('face'), meter = $('.gauge', face), who = $('.who', face);
  face.classList.add(said.verdict);
  if (number) { const b = document.createElement('button'); b.type = 'button'; b.textContent = number; b.setAttribute('aria-label', t('magnify_n', { n: number })); who.append(b, words(said)); } else who.remove();
  $('.fill', face).style.width = `${100 * said.p_fake}%`; $('.high', face).style.left = `${100 * threshold}%`; $('.low', face).style.left = `${100 * low}%`;
  Object.assign($('.band', face).style, { left: `${100 * low}%`, width: `${100 * (threshold - low)}%` });
  meter.setAttribute('aria-valuenow', (100 * said.p_fake).toFixed(1));
  meter.setAttribute('aria-valuetext', t('lines', said_lines));
  meter.setAttribute('aria-label', title);
  const why = number ? said.unsure_reasons.map(reason) : [];
  const lines = number ? [] : [t('called', said_lines)]; // of several faces, said once below them
  const told = relied(said) ? [...why, t('number', said_lines), ...lines] : [...why, t('not_relied', said_lines)];
  $('.number', face).textContent = told.join(' ');
  return face;
}

function succeed(item, a) {
  const card = item.card, marks = $('.marks', card), list = $('.faces', card), several = a.faces.length > 1;
  item.answer = a; item.failed = false; show(item, 'result'); card.classList.remove('none');
  card.classList.remove('real', 'fake', 'unsure'); card.classList.add(a.verdict);
  const count = v => a.faces.filter(f => f.verdict === v).length, all = a.faces.length, fakes = count('fake'), unsure = count('unsure'), left = a.faces_left_out;
  $('.result .verdict', card).textContent = several && fakes && a.verdict === 'fake' ? t('fakes_of', { n: fakes, all }) : several && a.verdict === 'unsure' && !fakes && unsure < all ? t('unsure_of', { n: unsure + left, all: all + left }) : words(a);
  const second = $('.second', card), verdict = $('.result .verdict', card);
  const mark = a.evidence?.find(f => f.says === 'generated');
  second.hidden = !mark;
  if (mark && !a.headline) second.textContent = `${t('evidence')}${t('colon')}${t('generated')}, ${mark.who || mark.value} (${t(mark.signed)})`;
  if (a.headline) { second.textContent = t('detector', { x: verdict.textContent }); const f = a.evidence.find(f => f.says === 'generated' && (f.signed === 'valid' || f.signed === 'trusted')); verdict.textContent = t('headline', { who: f.who }) + (f.signed === 'valid' ? ` (${t('unproven')})` : ''); card.classList.remove(a.verdict); card.classList.add('fake'); }
  const why = a.verdict === 'unsure' && !several ? a.unsure_reasons.map(reason) : []; // of several, each says its own
  if (several && fakes && a.verdict === 'unsure') why.push(...a.unsure_reasons.map(code => code === 'close_call' ? t('many_faces', { n: fakes, all }) : reason(code)));
  if (several && unsure && (a.verdict !== 'unsure' || fakes)) why.push(t('it_cant', { n: unsure, all }));
  if (a.faces_left_out) why.push(t(a.faces_left_out === 1 ? 'left_out_1' : 'left_out', { n: a.faces.length, more: a.faces_left_out }));
  $('.result .why', card).textContent = why.join(' ');
  marks.replaceChildren(); list.replaceChildren();
  for (const [i, f] of a.faces.entries()) {
    const box = document.createElement('button'), row = gauge(f, a, several ? t('face_n', { n: i + 1 }) : t('p_fake'), several ? i + 1 : 0);
    box.type = 'button'; box.tabIndex = -1; box.title = t('magnify'); box.onclick = () => magnify(item, f.box);
    box.className = `box ${f.verdict}`;
    if (several) { const b = document.createElement('b'); b.textContent = i + 1; box.append(b); }
    place(box, a.image, f.box.left, f.box.top, f.box.width, f.box.height);
    heat(marks, f.heatmap, a.image); marks.append(box); list.append(row);
    if (several) { $('.who button', row).onclick = () => magnify(item, f.box); row.onpointerenter = () => box.classList.add('lit'); row.onpointerleave = () => box.classList.remove('lit'); }
  }
  $('.lines', card).hidden = !several; $('.lines', card).textContent = several ? called(a.faces, a) : ''; card.classList.toggle('dense', all > 8);
  if (!a.faces.length && a.verdict !== 'unsure') list.append(gauge(a, a, t('p_fake'), 0));
  heat(marks, a.heatmap, a.image);
  const shown = $('.heat', card), legend = $('.legend', card);
  $('.switch', card).hidden = !$('.overlay', card);
  const glass = $('.magnify', card), likeliest = a.faces.reduce((x, f) => !x || f.p_fake > x.p_fake ? f : x, null);
  glass.hidden = !likeliest; glass.onclick = () => magnify(item, likeliest.box);
  shown.onchange = () => { card.classList.toggle('hot', shown.checked); legend.hidden = !shown.checked; };
  $('.means', card).textContent = t(means(a));
  rates(item); findings(card, a.evidence || []);
  json(card, a); frames(item, a);
  if (a.preview) { $('.frame > img', card).src = a.preview; if (item.url) URL.revokeObjectURL(item.url); item.url = ''; }
  else upright(item, a.image.orientation).catch(() => {}); // sideways is better than not at all
  say(`${$('.name', card).textContent}${t('colon')}${$('.result .verdict', card).textContent}. ${[...why, ...(a.verdict === 'unsure' ? [] : [t('number', { p: percent(a.p_fake) })])].join(' ')}`);
}

function means(a) {
  if (a.verdict !== 'unsure') return `means_${a.verdict}`;
  if (a.unsure_reasons.includes('no_face')) return 'means_no_face';
  if (a.faces_left_out && a.unsure_reasons.includes('faces_left_out')) return 'means_left_out';
  return a.unsure_reasons.some(code => code === 'close_call' || code === 'views_disagree') ? 'means_close' : 'means_unsure';
}

// A picture two wide and one high that says it is to be turned: some browsers do that for some formats only.
const TURNED = { webp: 'data:image/webp;base64,UklGRk4AAABXRUJQVlA4WAoAAAAIAAAAAQAAAAAAVlA4TA4AAAAvAQAAAAcQEf0PRET/A0VYSUYaAAAATU0AKgAAAAgAAQESAAMAAAABAAYAAAAAAAA=', png: 'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAIAAAABCAIAAAB7QOjdAAAAGmVYSWZNTQAqAAAACAABARIAAwAAAAEABgAAAAAAANZnS2kAAAAPSURBVHicY2BgYGBgYAAAAAcAAVchYhkAAAAASUVORK5CYII=' };
const MOVES = { 2: (w, h) => [-1, 0, 0, 1, w, 0], 3: (w, h) => [-1, 0, 0, -1, w, h], 4: (w, h) => [1, 0, 0, -1, 0, h], 5: () => [0, 1, 1, 0, 0, 0], 6: (w, h) => [0, 1, -1, 0, h, 0], 7: (w, h) => [0, -1, -1, 0, h, w], 8: (w, h) => [0, -1, 1, 0, 0, w] };
const turns = {}; // does this browser turn that format?
function loaded(image, url) { return new Promise((yes, no) => { image.onload = () => yes(image); image.onerror = no; image.src = url; }); }

async function upright(item, orientation) {
  if (!MOVES[orientation]) return;
  const head = new TextDecoder('latin1').decode(await item.file.slice(0, 12).arrayBuffer());
  const kind = head.startsWith('RIFF') ? 'webp' : head.includes('PNG') ? 'png' : '';
  if (!kind) return; // every browser turns a JPEG
  turns[kind] ??= (await loaded(new Image(), TURNED[kind])).naturalWidth === 1;
  if (turns[kind] || item.gone) return;
  const raw = await loaded(new Image(), item.url), canvas = document.createElement('canvas');
  const w = raw.naturalWidth, h = raw.naturalHeight, across = orientation > 4;
  canvas.width = across ? h : w; canvas.height = across ? w : h;
  const pen = canvas.getContext('2d');
  pen.setTransform(...MOVES[orientation](w, h)); pen.drawImage(raw, 0, 0);
  const blob = await new Promise(done => canvas.toBlob(done));
  if (!blob || item.gone) return;
  URL.revokeObjectURL(item.url); item.url = URL.createObjectURL(blob);
  $('.frame > img', item.card).src = item.url;
}

// Of an animation one frame was judged; others become cards of their own.
function frames(item, a) {
  const box = $('.frames', item.card), number = $('.at', box), { frame, frames: all } = a.image, judge = list => take(list.map(frame => ({ file: item.file, link: item.link, name: item.name, frame })));
  box.hidden = all < 2;
  if (box.hidden) return;
  $('.which', box).textContent = t('frames', { frame, all });
  number.max = all; number.value = frame < all ? frame + 1 : 1;
  $('.one', box).onclick = () => number.reportValidity() && judge([Number(number.value)]);
  const some = [...new Set([1, 2, 3, 4].map(k => Math.round(1 + k * (all - 1) / 4)))].filter(k => k !== frame);
  $('.some', box).hidden = Boolean(item.frame); $('.some', box).textContent = t('frames_go', { n: some.length });
  $('.some', box).onclick = () => judge(some);
}

function heat(marks, map, image) {
  if (!map) return;
  const overlay = document.createElement('img');
  overlay.className = 'overlay'; overlay.alt = ''; overlay.src = map.png;
  place(overlay, image, map.left, map.top, map.side, map.side);
  marks.append(overlay);
}

function json(card, answer) {
  const text = JSON.stringify(answer, (k, v) => (k === 'png' || k === 'preview') && v ? v.slice(0, 30) + '…' : v, 1), button = $('.copy', card);
  $('pre', card).textContent = text; $('pre', card).setAttribute('aria-label', t('json_label'));
  button.onclick = async () => {
    try { await navigator.clipboard.writeText(text); button.textContent = t('copied'); }
    catch { getSelection().selectAllChildren($('pre', card)); button.textContent = t('selected'); } // no clipboard without https
    say(button.textContent); setTimeout(() => { button.textContent = t('copy'); }, 1500);
  };
}

function tally() {
  const count = v => visit.filter(i => i.answer?.verdict === v).length, parts = [t('pictures', { n: visit.length })];
  if (count('fake')) parts.push(t('with_fake', { n: count('fake') }));
  if (count('unsure')) parts.push(t('cant', { n: count('unsure') }));
  const failed = visit.filter(i => i.failed && !i.answer).length;
  if (failed) parts.push(t('without', { n: failed }));
  $('#tally').textContent = parts.map(part => part.replace(' ', '\u00a0')).join(' · '); $('#cards').classList.toggle('many', visit.length > MANY);
}

function forget() {
  for (const item of visit) { item.gone = true; item.request?.abort(); URL.revokeObjectURL(item.url); item.card.remove(); }
  visit.length = 0; waiting = []; $('#visit').hidden = true; document.body.classList.remove('busy'); $('#files').focus(); say(t('gone'));
}

function noFile() { $('#dropped').textContent = t('no_file'); $('#dropped').hidden = false; }

// How often the weights err: of the figures that they carry, those over all held-out pictures.
const figure = metric => model?.evaluation?.figures?.find(f => f.pair === 'pooled' && f.metric === metric);
const rough = p => format(p, p < 0.1 ? fine : style);
const range = f => t('likely', { x: rough(f.value), lo: rough(f.lo), hi: rough(f.hi) });
function errs(verdict) { // of one verdict, or altogether
  const alarms = figure('false_alarms'), found = figure('recall'), n = new Intl.NumberFormat(LANGUAGE), { max_miss: miss, miss_over: over } = model?.guarantee || {};
  if (!alarms || !found || verdict === 'unsure') return '';
  const values = { n_real: n.format(alarms.n_real), n_fake: n.format(found.n_fake), alarms: range(alarms), found: range(found), miss: miss && rough(miss) };
  return t(verdict === 'fake' ? 'rates_fake' : verdict === 'real' && over === 'mean' ? 'rates_real' : 'rates', values);
}
function mix() { // how far these figures carry
  const f = figure('recall'), same = f && model.guarantee?.images === model.evaluation.images;
  return f ? [same && t('same_pictures'), t('mix', { share: rough(f.n_fake / (f.n_real + f.n_fake)) })].filter(Boolean).join(' ') : '';
}
function rates(item) { const p = $('.rates', item.card); p.textContent = item.answer ? errs(item.answer.verdict) : ''; p.hidden = !p.textContent; }

const SAID = ['thumbnail', 'unreadable', 'manifest_elsewhere']; // findings that a sentence of ours tells better than their value
const whereOf = f => ['png_text', 'comment'].includes(f.where) ? t(f.where) : f.where.toUpperCase();
function brief(f) {
  const parts = SAID.includes(f.code) ? [t(f.code)] : [f.code === 'manifest_earlier' && t(f.code), f.who, f.value === f.who ? '' : f.value];
  return `${parts.filter(Boolean).join(' – ').slice(0, 220)} (${whereOf(f)}, ${t(f.signed)})`;
}
function findings(card, list) {
  const told = list.filter(f => f.says !== 'neutral'), lines = (told.length ? list.slice(0, 12) : list.slice(0, 5)).map(f => {
    const li = document.createElement('li'), b = document.createElement('b');
    b.textContent = t(f.says); li.className = f.says; li.title = f.text;
    li.append(b, t('colon') + brief(f));
    return li;
  });
  $('.findings', card).replaceChildren(...lines);
  $('.caveat', card).textContent = lines.length ? t('caveat') : `${t('nothing')} ${t('caveat')}`;
}

function magnify(item, box) {
  const image = $('.frame > img', item.card), lens = $('#enlarged'), { width, height } = item.answer.image, scale = image.naturalWidth / width;
  if (!image.naturalWidth) return;
  const side = 1.2 * Math.max(box.width, box.height), x = Math.max(0, box.left + box.width / 2 - side / 2), y = Math.max(0, box.top + box.height / 2 - side / 2);
  const w = Math.min(side, width - x), h = Math.min(side, height - y), times = Math.max(1, 1600 / Math.max(w, h));
  lens.width = w * times; lens.height = h * times; lens.setAttribute('aria-label', image.alt);
  lens.getContext('2d').imageSmoothingQuality = 'high';
  lens.getContext('2d').drawImage(image, x * scale, y * scale, w * scale, h * scale, 0, 0, lens.width, lens.height);
  $('#lens').showModal();
}

// The card of the weights: what it says by numbers in the reader's language, and its free text in English.
function promised() { // what the thresholds were chosen to hold, where it is about sources like those of training
  const { max_fpr: fpr, max_miss: miss, miss_over: over, photo_sources: sources, unseen } = model.guarantee || {};
  const exact = new Intl.NumberFormat(LANGUAGE, { style: 'percent', maximumFractionDigits: 2 }); // rounded down it would promise too much
  if (unseen) return '';
  const alarms = fpr && t(sources?.length ? 'guarantee_fpr_each' : 'guarantee_fpr', { fpr: format(fpr, exact), n: sources?.length });
  return [alarms, miss && over === 'mean' && t('guarantee_miss', { miss: format(miss, exact) })].filter(Boolean).join(' ');
}
function table(heads, rows) {
  const made = document.createElement('table'), line = cells => { const tr = made.insertRow(); tr.append(...cells); };
  const cell = (tag, text, scope) => { const c = document.createElement(tag); c.textContent = text; if (scope) c.scope = scope; return c; };
  line(heads.map(text => cell('th', text, 'col')));
  for (const [name, ...values] of rows) line([cell('th', name, 'row'), ...values.map(text => cell('td', text))]);
  return made;
}
function each(metric, n, heads) { // a figure of each kind of fake, or each source of photographs, the worst first
  const own = f => metric === 'recall' || !f.pair.endsWith(', photographs'); // those share one set of photographs
  const found = (model.evaluation?.figures || []).filter(f => f.metric === metric && f.pair !== 'pooled' && f[n] && own(f));
  found.sort((a, b) => (metric === 'recall' ? 1 : -1) * (a.value - b.value));
  const bare = p => rough(p).replace(/\s?%/, ''), known = f => f.lo != null && f.lo < f.hi; // an interval of no width says nothing
  const share = f => rough(f.value) + (known(f) ? ` (${bare(f.lo)}–${rough(f.hi)})` : ''), count = new Intl.NumberFormat(LANGUAGE);
  return found.length ? table(heads, found.map(f => [f.pair.replace(/, photographs$/, ''), count.format(f[n]), share(f)])) : '';
}
function list(rows) {
  const made = document.createElement('dl');
  for (const [name, value, language = LANGUAGE] of rows) {
    const dt = document.createElement('dt'), dd = document.createElement('dd');
    dt.textContent = name; dd.append(value); dd.lang = language; made.append(dt, dd);
  }
  return made;
}
function facts() {
  const m = model, card = m.card || {}, there = r => r[1], note = document.createElement('p');
  const told = [[t('thresholds'), called([], m)], [t('guarantee'), promised()], [t('errors_title'), `${errs()} ${mix()}`.trim()], [t('by_kind'), each('recall', 'n_fake', [t('pair'), t('n_fake'), t('recall')])], [t('by_source'), each('false_alarms', 'n_real', [t('pair'), t('n_real'), t('false_alarms')])], [t('convention'), ...(/synthesised or manipulated/.test(m.convention) ? [t('convention_text')] : [m.convention, 'en'])], [t('weights'), `${m.name} – ${m.arch || ''}`], [t('checksum'), m.sha256]];
  const written = [[t('about'), m.about], [t('use'), card.use], [t('limits_title'), card.limits], [t('data'), card.data], [t('start'), card.start], [t('licence'), card.licence]].filter(there);
  note.textContent = t('english_only'); note.className = 'note'; note.hidden = !written.length;
  $('#facts').replaceChildren(list(told.filter(there)), note, list(written.map(r => [...r, 'en'])));
  if (!$('#weights-card').open) $('#weights-card').showModal();
}
async function openCard() {
  const status = model ? 200 : await about();
  if (model) return facts();
  if (status === 401) { $('#keyform').hidden = false; $('#key').focus(); return; }
  $('#dropped').textContent = status ? t('answered', { n: status }) : t('unreachable'); $('#dropped').hidden = false;
}
const asked = () => location.hash === '#model-card' && openCard(); // a link to the card itself
const here = (hash = '') => history.replaceState(null, '', location.pathname + location.search + hash);

// What can be kept: everything is made here, in the browser, from the answers.
function save(name, kind, text) {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type: kind })); link.download = name; link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}
const stamp = () => new Date().toISOString().slice(0, 19).replaceAll(':', '-');
const nameOf = item => $('.name', item.card).textContent;
const kept = () => visit.map(item => ({ file: nameOf(item), answer: item.answer && JSON.parse(JSON.stringify(item.answer, (k, v) => k === 'heatmap' || k === 'preview' ? undefined : v)), error: item.answer ? null : $('.failed .why', item.card).textContent }));

function csv() {
  const cell = v => { const s = String(v ?? ''); return `"${(/^[=+\-@\t\r]/.test(s) ? "'" : '') + s.replaceAll('"', '""')}"`; };
  const rows = kept().map(({ file, answer: a, error }) => a ? [file, a.verdict, a.p_fake, a.unsure_reasons.join(' '), a.faces.length, lower(a), a.threshold, a.image.sha256, a.image.frame, a.image.frames, a.model.sha256, a.evidence.filter(f => f.says !== 'neutral').map(f => `${f.says}: ${f.who || f.value} (${f.signed})`).join('; '), ''] : [file, ...Array(11).fill(''), error]);
  return [['file', 'verdict', 'p_fake', 'reasons', 'faces', 'lower_threshold', 'threshold', 'sha256', 'frame', 'frames', 'weights_sha256', 'evidence', 'error'], ...rows].map(r => r.map(cell).join(',')).join('\r\n');
}

const escaped = s => String(s ?? '').replace(/[&<>"']/g, c => `&#${c.charCodeAt(0)};`);
function small(item) { // with the boxes of several faces
  const image = $('.frame > img', item.card), canvas = document.createElement('canvas'), times = Math.min(1, 480 / Math.max(image.naturalWidth, image.naturalHeight));
  if (!image.naturalWidth) return '';
  canvas.width = image.naturalWidth * times; canvas.height = image.naturalHeight * times;
  const pen = canvas.getContext('2d'), faces = item.answer?.faces || [], scale = canvas.width / (item.answer?.image.width || 1);
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  const size = Math.max(13, Math.round(canvas.width / 24)); // legible on paper
  pen.font = `bold ${size}px sans-serif`; pen.textBaseline = 'top';
  for (const [i, { box }] of (faces.length > 1 ? faces : []).entries()) {
    const x = Math.max(1, box.left * scale), y = Math.max(1, box.top * scale), number = String(i + 1);
    pen.strokeStyle = '#fff'; pen.lineWidth = 4; pen.strokeRect(x, y, box.width * scale, box.height * scale);
    pen.strokeStyle = '#111'; pen.lineWidth = 1.5; pen.strokeRect(x, y, box.width * scale, box.height * scale);
    pen.fillStyle = '#fff'; pen.fillRect(x, y, pen.measureText(number).width + 6, size + 3); pen.fillStyle = '#111'; pen.fillText(number, x + 3, y + 2);
  }
  return canvas.toDataURL('image/jpeg', 0.8);
}

const LOOK = 'body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}section{border-top:1px solid #bbb;padding:1rem 0;break-inside:avoid;overflow-wrap:anywhere}img{max-width:40%;max-height:14rem;float:right;margin:0 0 1rem 1rem}th{text-align:left;vertical-align:top;padding-right:1rem;font-weight:600;white-space:nowrap}.v{font-size:1.3rem;font-weight:650}section::after{content:"";display:block;clear:both}@media print{body{font-size:9.5pt;line-height:1.4;margin:0;max-width:none}section{padding:.5rem 0}h1,h2,h3,p,ul{margin:.3rem 0}img{max-height:10rem}}';
function report() {
  const line = (name, value) => value ? `<tr><th scope="row">${escaped(name)}</th><td>${escaped(value)}</td></tr>` : '', n = new Intl.NumberFormat(LANGUAGE);
  const told = (said, a) => relied(said) ? shower(said, a)(said.p_fake) : t('not_relied', { p: percent(said.p_fake) }), weights = a => `${a.model.name}, SHA-256 ${a.model.sha256}`;
  const answers = visit.map(item => item.answer).filter(Boolean), same = new Set(answers.map(weights)).size === 1; // weights and thresholds stand above then
  const lines = a => line(t('thresholds'), called(a.faces, a)) + line(t('weights'), weights(a));
  const each = a => a.faces.length > 1 ? a.faces.map((f, i) => line(t('face_n', { n: i + 1 }), `${told(f, a)} – ${words(f)}. ${f.unsure_reasons.map(reason).join(' ')}`)).join('') : a.faces.length || a.verdict !== 'unsure' ? line(t('p_fake'), told(a.faces[0] || a, a)) : '';
  const sections = visit.map(item => {
    const a = item.answer, picture = small(item), text = q => $(q, item.card).textContent;
    const table = a ? [each(a), same ? '' : lines(a), line(t('size'), `${n.format(a.image.width)} × ${n.format(a.image.height)}, ${n.format(a.image.bytes)} B`), a.image.frames > 1 ? line(t('frame'), t('frames', { frame: a.image.frame, all: a.image.frames })) : '', line(t('checksum'), a.image.sha256)].join('') : '';
    const list = a?.evidence.map(f => `<li><b>${escaped(t(f.says))}</b>${t('colon')}${escaped(LANGUAGE === 'en' ? `${f.text} (${t(f.signed)})` : brief(f))}</li>`).join('') || `<li>${escaped(t('nothing'))}</li>`;
    return `<section>${picture ? `<img src="${picture}" alt="">` : ''}<h2>${escaped(nameOf(item))}</h2><p class="v">${escaped(a ? text('.result .verdict') : t('none'))}</p><p>${escaped(a ? [text('.second') && `${text('.second')}.`, text('.result .why'), text('.means'), text('.rates')].filter(Boolean).join(' ') : text('.failed .why'))}</p><table>${table}</table>${a ? `<h3>${escaped(t('evidence'))}</h3><ul>${list}</ul>` : ''}</section>`;
  });
  const title = t('report_title', { n: visit.length }), date = new Date().toLocaleString(LANGUAGE, { dateStyle: 'long', timeStyle: 'long' });
  const above = same ? `<table>${line(t('thresholds'), called(answers.flatMap(a => a.faces), answers[0]))}${line(t('weights'), weights(answers[0]))}</table>` : '';
  return `<!doctype html><html lang="${LANGUAGE}"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${escaped(title)}</title><style>${LOOK}</style><h1>${escaped(title)}</h1><p>${escaped(t('made', { date, version: model?.version || '' }))}</p><p><b>${escaped(t('warning'))}</b> ${escaped([t('limits'), errs(), mix(), t('caveat')].join(' '))}</p>${above}${sections.join('')}</html>`;
}

async function about() {
  const answer = await fetch('model', { headers: key ? { 'X-API-Key': key } : {} }).catch(() => null);
  if (!answer?.ok) return answer?.status;
  const m = model = await answer.json();
  limits = m.limits; $('#linkform').hidden = !limits.fetch_urls; $('#limits').textContent = t('up_to', { mb: limits.max_body_mb });
  $('[data-t=hint]').textContent = new Intl.ListFormat(LANGUAGE, { type: 'disjunction' }).format(limits.formats.map((f) => ({ WEBP: 'WebP', HEIF: 'HEIC' })[f] || f));
  $('#weights').textContent = `${t('weights')} ${m.name}, sha256 ${m.sha256.slice(0, 12)}…, ${t('version')} ${m.version}${/^research and non-commercial use only/.test(m.card?.licence) ? `, ${t('noncommercial')}` : ''} · `;
  $('#errs').textContent = errs(); $('#errs').hidden = !errs();
  for (const item of visit) rates(item);
}

$('#files').addEventListener('change', e => { add(e.target.files); e.target.value = ''; });
$('#forget').addEventListener('click', forget);
$('#report').addEventListener('click', () => save(`face_future ${stamp()}.html`, 'text/html', report()));
$('#csv').addEventListener('click', () => save(`face_future ${stamp()}.csv`, 'text/csv', '\ufeff' + csv()));
$('#alljson').addEventListener('click', () => save(`face_future ${stamp()}.json`, 'application/json', JSON.stringify(kept(), null, 1)));
$('#about').addEventListener('click', e => { e.preventDefault(); here('#model-card'); openCard(); });
$('#weights-card').addEventListener('close', () => here());
addEventListener('hashchange', asked);
for (const b of document.querySelectorAll('.shut')) b.addEventListener('click', () => b.closest('dialog').close());
$('#keyform').addEventListener('submit', e => {
  e.preventDefault(); key = $('#key').value; $('#keyform').hidden = true; about();
  for (const item of visit) if (item.failed && !item.answer) enqueue(item);
});
$('#linkform').addEventListener('submit', e => { e.preventDefault(); addLink($('#link').value.trim()); $('#link').value = ''; });
function taken(data) { // what was pasted or dropped: files, or perhaps an address
  const files = data?.files || [], text = (data?.getData('text/uri-list') || data?.getData('text/plain') || '').trim();
  if (files.length) add(files); else if (isLink(text)) addLink(text); else noFile();
}
document.addEventListener('paste', e => { if (e.target.matches?.('input:not([type=file])')) return; e.preventDefault(); taken(e.clipboardData); });
let depth = 0;
const over = on => $('#drop').classList.toggle('over', on);
document.addEventListener('dragenter', e => { e.preventDefault(); depth++; over(true); });
document.addEventListener('dragleave', () => { if (--depth <= 0) { depth = 0; over(false); } });
document.addEventListener('dragover', e => e.preventDefault());
document.addEventListener('drop', e => { e.preventDefault(); depth = 0; over(false); taken(e.dataTransfer); });
document.documentElement.lang = LANGUAGE; document.title = t('title'); translate(document);
about().then(asked);
