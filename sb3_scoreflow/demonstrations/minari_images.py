"""Images that Minari stores as JPEG, one after the other in an HDF5 dataset of bytes."""

import io
import math

import numpy as np
from gymnasium import spaces

from sb3_scoreflow.safe_hdf5.arrays import Array, UnusableFileError, reading

_MAGIC = b"\xff\xd8\xff"
_MIN_SIZE = 32


def is_jpeg_space(space: spaces.Space | None) -> bool:
    """:return: Whether Minari considers arrays in this space images, and stores them as JPEG"""
    return (
        isinstance(space, spaces.Box)
        and space.dtype == np.uint8
        and len(space.shape) in (2, 3)
        and min(space.shape[:2]) >= _MIN_SIZE
        and bool((space.low == 0).all() and (space.high == 255).all())
    )


def is_jpeg_array(array: Array) -> bool:
    """
    :return: Whether an array with an unknown space contains JPEG files, which is assumed if all rows start with JPEG's
        signature
    """
    return array.holds_bytes and len(array) > 0 and all(data.startswith(_MAGIC) for data in array.read_bytes())


class JPEGImages:
    """
    Encoded images of an episode, with the attributes that :func:`~sb3_scoreflow.safe_hdf5.arrays.check_size` needs.

    :param array: Array with the bytes of a JPEG file in each row
    :param shape: Shape of an image; None if it is not recorded: the shape of the first image
    :raises UnusableFileError: if the array does not contain bytes
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
        # If the shape is not recorded, the first image determines it
        entry = self._size(next(array.read_bytes())) if shape is None else shape
        self.shape: tuple[int, ...] = (len(array), *entry)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def memory(self) -> int:
        return max(math.prod(self.shape), self._array.memory)

    def read(self) -> np.ndarray:
        """
        :return: The images, uint8
        :raises UnusableFileError: if an image has another size
        :raises OSError: if an image is damaged or not a JPEG
        """
        from PIL import Image

        images = np.empty(self.shape, np.uint8)
        for row, (image, data) in enumerate(zip(images, self._array.read_bytes(), strict=True)):
            # Before decoding, because a few bytes may declare an image that exceeds the memory
            size = self._size(data)
            if size != self.shape[1:]:
                raise UnusableFileError(
                    f"`{self.name}` has an image of shape {size} at row {row}, but others or the recorded space have "
                    f"{self.shape[1:]}. Record it again."
                )
            with reading(self.name):
                image[...] = Image.open(io.BytesIO(data), formats=["JPEG"])
        return images

    def _size(self, data: bytes) -> tuple[int, ...]:
        """:return: Shape of the image in a JPEG file; only its header is read"""
        from PIL import Image

        with reading(self.name):
            # Only JPEG, because some of Pillow's formats start other programs
            with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
                channels = len(image.getbands())
                return (image.height, image.width, *((channels,) if channels > 1 else ()))
