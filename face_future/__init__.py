__version__ = "0.1.0"

import os

os.environ.setdefault('ORT_DISABLE_TELEMETRY', '1') # ONNX Runtime would keep an id of the machine and tell its makers of each use
