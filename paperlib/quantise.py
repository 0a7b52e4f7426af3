"""Both quantisers behind one door: prepare, freeze, read, save, load (paper section 4)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from paperlib.baselines import build_model
from paperlib.calibrate import calibrate, image_batch
from paperlib.config import QuantSettings, StudentSettings
from paperlib.equalise import equalise
from paperlib.errors import UserError
from paperlib.files import atomic_path
from paperlib.graph import deployment_graph
from paperlib.quant_fx import PaperQat, calibrate_paper, freeze_paper, paper_graph
from paperlib.quant_tflite import TfliteQat, freeze_tflite, tflite_graph
from paperlib.quantised import QuantisedGraph
from paperlib.student import load_weights, read_checkpoint, write_checkpoint

Qat = PaperQat | TfliteQat
