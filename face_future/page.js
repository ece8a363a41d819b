// One card for each picture; nothing leaves this page but the picture itself, and only to this service.
'use strict';
const $ = (q, at = document) => at.querySelector(q);
const make = id => $('#' + id).content.firstElementChild.cloneNode(true);
const percent = p => p >= 0.9995 ? 'over 99.9 %' : p > 0 && p < 0.0005 ? 'under 0.1 %' : `${(100 * p).toFixed(p > 0.99 || p < 0.01 ? 1 : 0)} %`;
const ATONCE = 2, TRIES = 4;

const WORDS = { fake: 'Signs of a fake', real: 'No clear sign of a fake', unsure: 'Can’t tell' };
const words = said => said.verdict === 'real' && said.p_fake >= 0.5 ? 'Some signs, too few to call it a fake' : WORDS[said.verdict];
const REASONS = {
  no_face: 'No face was found.', face_too_small: 'The face is too small to judge.', face_cut: 'The face is cut off by the edge of the picture.',
  too_dark: 'The face is too dark to judge.', too_blurred: 'The face is too blurred to judge.', too_compressed: 'The picture is too strongly compressed to judge.',
  faces_left_out: 'No sign of a fake in the faces that were judged, but not all faces were.',
  close_call: 'Too close to call: some signs, neither few enough to call it real nor enough to call it a fake.', views_disagree: 'The face and its mirror image get opposite verdicts.',
};
const MEANS = {
  fake: 'This does not prove a fake. Filters, retouching and strong compression can leave similar traces in an honest photograph. Ask where the picture comes from.',
  real: 'This does not prove a photograph. Fakes of a kind that the network has not learnt pass unnoticed. Ask where the picture comes from.',
  unsure: 'This says nothing either way. A larger, sharper picture of the face may help.',
};
const reason = code => REASONS[code] || `Reason: ${code.replaceAll('_', ' ')}.`;
const say = text => { $('#status').textContent = text; };

const visit = []; // {card, file, url, answer}
let waiting = [], running = 0, key = '', limits = null;

function add(files) {
  const pictures = [...files];
  if (!pictures.length) return;
  $('#visit').hidden = false;
  const older = $('#cards').firstChild; // a new selection comes first, in its own order
  for (const file of pictures) {
    const item = { file, card: make('card'), url: URL.createObjectURL(file), tries: 0 };
    const image = $('img', item.card), title = $('.name', item.card);
    title.textContent = file.name || 'Pasted picture'; title.title = title.textContent; title.id = `name-${visit.length}-${Date.now()}`;
    item.card.setAttribute('aria-labelledby', title.id);
    image.alt = `Your picture ${title.textContent}`;
    image.addEventListener('error', () => $('.frame', item.card).classList.add('blank')); // a format that this browser can't show
    image.addEventListener('load', () => $('.frame', item.card).classList.toggle('tall', image.naturalHeight > image.naturalWidth));
    image.src = item.url;
    $('.again', item.card).addEventListener('click', () => { item.tries = 0; enqueue(item); item.card.focus(); });
    $('#cards').insertBefore(item.card, older);
    visit.push(item); enqueue(item);
  }
  say(pictures.length === 1 ? `Judging ${pictures[0].name || 'the pasted picture'}` : `Judging ${pictures.length} pictures`);
  tally();
}

function show(item, part) { for (const p of ['working', 'result', 'failed']) $('.' + p, item.card).hidden = p !== part; }
function step(item, text, share) {
  show(item, 'working'); $('.step', item.card).textContent = text;
  const bar = $('progress', item.card); bar.setAttribute('aria-label', text);
  if (share === undefined) bar.removeAttribute('value'); else bar.value = share;
}

function enqueue(item) { item.failed = false; step(item, 'Waiting', 0); waiting.push(item); next(); }
function next() { while (running < ATONCE && waiting.length) { running++; send(waiting.shift()); } }
function done(item) { running--; tally(); next(); }

function send(item) {
  if (item.gone) return done(item);
  if (limits && item.file.size > limits.max_body_mb * 1e6) { fail(item, `The file is larger than ${limits.max_body_mb} MB; make it smaller.`); return done(item); }
  const form = new FormData(), request = item.request = new XMLHttpRequest();
  form.append('file', item.file, item.file.name || 'pasted.png');
  request.open('POST', 'predict?explain=true');
  if (key) request.setRequestHeader('X-API-Key', key);
  request.upload.onprogress = e => e.lengthComputable && step(item, e.loaded < e.total ? `Sending, ${Math.round(100 * e.loaded / e.total)} %` : 'Looking at it', e.loaded < e.total ? e.loaded / e.total : undefined);
  request.onload = () => {
    let body = null;
    try { body = JSON.parse(request.responseText); } catch { /* not ours */ }
    if (request.status === 200 && body) succeed(item, body);
    else if (request.status === 401) askKey(item);
    else if ((request.status === 503 || request.status === 429) && ++item.tries < TRIES) return later(item, request);
    else fail(item, body?.error?.message || `The service answered ${request.status}.`, request.status === 503 || request.status === 429 || request.status >= 500);
    done(item);
  };
  request.onerror = () => { fail(item, 'The service can’t be reached. Check the connection, and try again.', true); done(item); };
  request.onabort = () => done(item);
  request.send(form);
}

function later(item, request) {
  const seconds = Math.min(30, Math.max(1, Number(request.getResponseHeader('Retry-After')) || 1));
  step(item, `The service is busy; trying again in ${seconds} s`);
  setTimeout(() => { running--; if (!item.gone) { waiting.push(item); } next(); }, 1000 * seconds);
}

function askKey(item) {
  fail(item, key ? 'That key was not accepted.' : 'This service asks for a key; enter it above.', true);
  $('#keyform').hidden = false; $('#key').focus();
}

function fail(item, message, again = false) {
  show(item, 'failed'); item.failed = true; item.answer = null; item.card.classList.add('none');
  $('.failed .why', item.card).textContent = message; $('.again', item.card).hidden = !again;
  say(`${$('.name', item.card).textContent}: no verdict. ${message}`);
}

function place(mark, image, left, top, width, height) {
  const x0 = Math.max(0, left), y0 = Math.max(0, top), x1 = Math.min(image.width, left + width), y1 = Math.min(image.height, top + height);
  Object.assign(mark.style, { left: `${100 * x0 / image.width}%`, top: `${100 * y0 / image.height}%`, width: `${100 * (x1 - x0) / image.width}%`, height: `${100 * (y1 - y0) / image.height}%` });
}

function gauge(said, answer, title, number) {
  const threshold = answer.threshold;
  const face = make('face'), meter = $('.gauge', face), who = $('.who', face);
  face.classList.add(said.verdict);
  if (number) { const b = document.createElement('b'); b.textContent = number; who.append(b, words(said)); } else who.remove();
  $('.fill', face).style.width = `${100 * said.p_fake}%`; $('.line', face).style.left = `${100 * threshold}%`;
  meter.setAttribute('aria-valuenow', (100 * said.p_fake).toFixed(1));
  meter.setAttribute('aria-valuetext', `${percent(said.p_fake)}, the line is at ${percent(threshold)}`);
  meter.setAttribute('aria-label', title);
  $('.number', face).textContent = said.verdict === 'unsure' ? `${number ? said.unsure_reasons.map(reason).join(' ') + ' ' : ''}${said.unsure_reasons.includes('close_call') ? `Probability of a fake: ${percent(said.p_fake)}. Below ${percent(answer.lower_threshold)} there is no clear sign of one; from ${percent(threshold)} on it is called one.` : `The number, ${percent(said.p_fake)}, is not to be relied on here.`}`
    : `Probability of a fake: ${percent(said.p_fake)}. It is called a fake from ${percent(threshold)} on.`;
  return face;
}

function succeed(item, a) {
  const card = item.card, marks = $('.marks', card), list = $('.faces', card), several = a.faces.length > 1;
  item.answer = a; item.failed = false; show(item, 'result'); card.classList.remove('none');
  card.classList.remove('real', 'fake', 'unsure'); card.classList.add(a.verdict);
  const count = v => a.faces.filter(f => f.verdict === v).length, all = a.faces.length, fakes = count('fake'), unsure = count('unsure');
  $('.result .verdict', card).textContent = several && fakes ? `Signs of a fake in ${fakes} of ${all} faces` : several && a.verdict === 'unsure' && unsure < all ? `Can’t tell for ${unsure} of ${all} faces` : words(a);
  const why = a.verdict === 'unsure' && !several ? a.unsure_reasons.map(reason) : []; // of several, each says its own
  if (several && unsure && a.verdict !== 'unsure') why.push(`It can’t tell for ${unsure} of ${all} faces.`);
  if (a.faces_left_out) why.push(`Only the ${a.faces.length} largest faces were judged; ${a.faces_left_out} ${a.faces_left_out === 1 ? 'was' : 'were'} not.`);
  $('.result .why', card).textContent = why.join(' ');
  marks.replaceChildren(); list.replaceChildren();
  for (const [i, f] of a.faces.entries()) {
    const box = document.createElement('span'), row = gauge(f, a, several ? `Face ${i + 1}, probability of a fake` : 'Probability of a fake', several ? i + 1 : 0);
    box.className = `box ${f.verdict}`;
    if (several) { const b = document.createElement('b'); b.textContent = i + 1; box.append(b); }
    place(box, a.image, f.box.left, f.box.top, f.box.width, f.box.height);
    heat(marks, f.heatmap, a.image); marks.append(box); list.append(row);
    if (several) { row.onpointerenter = () => box.classList.add('lit'); row.onpointerleave = () => box.classList.remove('lit'); }
  }
  if (!a.faces.length && a.verdict !== 'unsure') list.append(gauge(a, a, 'Probability of a fake', 0));
  heat(marks, a.heatmap, a.image);
  const shown = $('.heat', card), legend = $('.legend', card);
  $('.switch', card).hidden = !$('.overlay', card);
  shown.onchange = () => { card.classList.toggle('hot', shown.checked); legend.hidden = !shown.checked; };
  $('.means', card).textContent = MEANS[a.verdict];
  json(card, a);
  upright(item, a.image.orientation).catch(() => {}); // sideways is better than not at all
  say(`${$('.name', card).textContent}: ${$('.result .verdict', card).textContent}. ${[...why, ...(a.verdict === 'unsure' ? [] : [`Probability of a fake ${percent(a.p_fake)}.`])].join(' ')}`);
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

function heat(marks, map, image) {
  if (!map) return;
  const overlay = document.createElement('img');
  overlay.className = 'overlay'; overlay.alt = ''; overlay.src = map.png;
  place(overlay, image, map.left, map.top, map.side, map.side);
  marks.append(overlay);
}

function json(card, answer) {
  const text = JSON.stringify(answer, (k, v) => k === 'png' ? v.slice(0, 30) + '…' : v, 1), button = $('.copy', card);
  $('pre', card).textContent = text; $('pre', card).setAttribute('aria-label', 'The answer as JSON');
  button.onclick = async () => {
    try { await navigator.clipboard.writeText(text); button.textContent = 'Copied'; }
    catch { getSelection().selectAllChildren($('pre', card)); button.textContent = 'Selected'; } // no clipboard without https
    say(button.textContent); setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  };
}

function tally() {
  const count = v => visit.filter(i => i.answer?.verdict === v).length, parts = [`${visit.length} picture${visit.length === 1 ? '' : 's'}`];
  if (count('fake')) parts.push(`${count('fake')} with signs of a fake`);
  if (count('unsure')) parts.push(`${count('unsure')} can’t tell`);
  const failed = visit.filter(i => i.failed && !i.answer).length;
  if (failed) parts.push(`${failed} without a verdict`);
  $('#tally').textContent = parts.join(' · ');
}

function forget() {
  for (const item of visit) { item.gone = true; item.request?.abort(); URL.revokeObjectURL(item.url); item.card.remove(); }
  visit.length = 0; waiting = []; $('#visit').hidden = true; $('#files').focus(); say('Forgotten');
}

async function about() {
  const answer = await fetch('model', { headers: key ? { 'X-API-Key': key } : {} }).catch(() => null);
  if (!answer?.ok) return;
  const m = await answer.json();
  limits = m.limits; $('#limits').textContent = `, up to ${limits.max_body_mb}\u00a0MB`;
  $('#weights').textContent = `Weights ${m.name}, sha256 ${m.sha256.slice(0, 12)}…, version ${m.version} · `;
  if (m.card?.limits) $('#card-limits').textContent = m.card.limits.replace(/ *A verdict is a reason to look closer.*/, ''); // the page says so itself
}

$('#files').addEventListener('change', e => { add(e.target.files); e.target.value = ''; });
$('#forget').addEventListener('click', forget);
$('#keyform').addEventListener('submit', e => {
  e.preventDefault(); key = $('#key').value; $('#keyform').hidden = true; about();
  for (const item of visit) if (item.failed && !item.answer) enqueue(item);
});
document.addEventListener('paste', e => { if (e.clipboardData?.files.length) { e.preventDefault(); add(e.clipboardData.files); } });
let depth = 0;
const over = on => $('#drop').classList.toggle('over', on);
document.addEventListener('dragenter', e => { e.preventDefault(); depth++; over(true); });
document.addEventListener('dragleave', () => { if (--depth <= 0) { depth = 0; over(false); } });
document.addEventListener('dragover', e => e.preventDefault());
document.addEventListener('drop', e => { e.preventDefault(); depth = 0; over(false); add(e.dataTransfer?.files || []); });
about();
