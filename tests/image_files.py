"""Small image files for tests, written by the libraries that read them."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from rasterio.transform import from_origin

UTM = "EPSG:32633"
NORTH_UP = from_origin(500_000, 5_000_000, 30, 30)


def write_raster(path: Path, bands: np.ndarray, **profile: Any) -> Path:
    """Write (C, H, W) or (H, W) in the format of the ending; keywords are rasterio's."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bands = bands[None] if bands.ndim == 2 else bands
    driver = {".tif": "GTiff", ".png": "PNG", ".jpg": "JPEG", ".jp2": "JP2OpenJPEG"}[path.suffix.lower()]
    keywords: dict[str, Any] = {"crs": UTM, "transform": NORTH_UP} if driver in ("GTiff", "JP2OpenJPEG") else {}
    count, height, width = bands.shape
    keywords |= {"driver": driver, "count": count, "height": height, "width": width, "dtype": bands.dtype} | profile
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", **keywords) as file:
            file.write(bands)
    return path


def write_dicom(path: Path, pixels: np.ndarray | None, **attributes: Any) -> Path:
    """Write a grey image (H, W); attributes change or add elements."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = "1.2.3"
    file.PatientID = path.stem
    if pixels is not None:
        file.Rows, file.Columns = pixels.shape
        file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
        file.BitsAllocated = file.BitsStored = 8 * pixels.dtype.itemsize
        file.HighBit = file.BitsStored - 1
        file.PixelRepresentation = int(pixels.dtype.kind == "i")
        file.PixelSpacing = [0.2, 0.1]
        file.PixelData = pixels.tobytes()
    for name, value in attributes.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path
