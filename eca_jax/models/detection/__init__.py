"""Detectors: Faster R-CNN, Mask R-CNN and RetinaNet, with the backbones of this package."""

from eca_jax.models.detection.conventions import DetectorConvention as DetectorConvention
from eca_jax.models.detection.detect import Objects as Objects, detect as detect
from eca_jax.models.detection.detections import Detections as Detections
from eca_jax.models.detection.detectors import (
    Detector as Detector,
    DetectorArchitecture as DetectorArchitecture,
    FasterRCNN as FasterRCNN,
    MaskRCNN as MaskRCNN,
    RetinaNet as RetinaNet,
)
from eca_jax.models.detection.registry import create_detector as create_detector, list_detectors as list_detectors
