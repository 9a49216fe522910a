"""Images that Minari stores as JPEG, one after the other in an HDF5 dataset of bytes."""

import io
import math

import numpy as np
from gymnasium import spaces

from sb3_scoreflow.safe_hdf5.arrays import Array, UnusableFileError, reading

_MAGIC = b"\xff\xd8\xff"
_MIN_SIZE = 32


def is_jpeg_space(space: spaces.Space | None) -> bool:
    """:return: Whether Minari takes what is in this space for images, and stores them as JPEG"""
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) in (2, 3)
        and min(space.shape[:2]) >= _MIN_SIZE
        and bool((space.low == 0).all() and (space.high == 255).all())
    )


def is_jpeg_array(array: Array) -> bool:
    """:return: Whether an array whose space is not known has JPEG files in it: its rows begin like them, all of them"""
    return array.holds_bytes and len(array) > 0 and all(data.startswith(_MAGIC) for data in array.read_bytes())


class JPEGImages:
    """
    Images of an episode, undecoded. Has what :func:`~sb3_scoreflow.safe_hdf5.arrays.check_size` asks for.

    :param array: array of the bytes of a JPEG file per row
    :param shape: shape of an image; None if it is not recorded, then that of the first image
    :raises UnusableFileError: if it has no bytes
    """

    def __init__(self, array: Array, shape: tuple[int, ...] | None) -> None:
        if not array.holds_bytes:
            raise UnusableFileError(
                f"`{array.name}` has shape {array.shape} and type {array.dtype}; as `jpeg_encoding` is not false in its "
                "metadata, it must have the bytes of JPEG files. Fetch the dataset again."
            )
        self._array = array
        self.name = array.name
        self.chunk_bytes = array.chunk_bytes
        self.dtype = np.dtype(np.uint8)
        # Where it is not recorded, the first image tells
        entry = self._size(next(array.read_bytes())) if shape is None else shape
        self.shape: tuple[int, ...] = (len(array), *entry)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def memory(self) -> int:
        return max(math.prod(self.shape), self._array.memory)

    def read(self) -> np.ndarray:
        """
        :return: uint8, the images
        :raises UnusableFileError: if one has another size
        :raises OSError: if one is damaged, or no JPEG
        """
        from PIL import Image

        images = np.empty(self.shape, np.uint8)
        for row, (image, data) in enumerate(zip(images, self._array.read_bytes(), strict=True)):
            # Before it is decoded: a few bytes may say that the image is larger than the memory
            size = self._size(data)
            if size != self.shape[1:]:
                raise UnusableFileError(
                    f"`{self.name}` has an image of shape {size} at row {row}, others or the recorded space have "
                    f"{self.shape[1:]}. Record it again."
                )
            with reading(self.name):
                image[...] = Image.open(io.BytesIO(data), formats=["JPEG"])
        return images

    def _size(self, data: bytes) -> tuple[int, ...]:
        """:return: Shape of the image in a JPEG file, of which only the head is read"""
        from PIL import Image

        with reading(self.name):
            # JPEG alone: among the formats that Pillow knows are some that start other programs
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                channels = len(image.getbands())
                return (image.height, image.width, *((channels,) if channels > 1 else ()))
