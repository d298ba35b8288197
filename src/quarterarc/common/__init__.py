"""Utilities of all packages: errors, registries, random streams, devices and processes, progress bars, text."""

import warnings

# tqdm's, in notebooks without ipywidgets, as soon as accelerate imports it; `common.progress` has a plain bar there
warnings.filterwarnings("ignore", "IProgress not found")
