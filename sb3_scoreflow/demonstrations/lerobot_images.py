"""Images of LeRobot's data sets, in videos or tables, which are decoded when they are indexed."""

import io
import itertools
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from sb3_scoreflow.demonstrations.lazy import BlockCache, file_state, readable
from sb3_scoreflow.demonstrations.lerobot_folder import INSTALL, open_parquet
from sb3_scoreflow.safe_hdf5.arrays import UnusableFileError

_BATCH_ROWS = 32
_MAX_PACKETS = 1000
"""Number of frames in which the second key frame of a video is searched for."""
_MAX_PIXELS = 2**26


class DecodedImages(ABC):
    """
    The images of one camera in several files, read by their row numbers; a source of
    :class:`~sb3_scoreflow.demonstrations.lazy.LazyImages`.

    Images are RGB, channels last. Decoded images are cached; if the cache is large enough for the whole data set, this
    includes images that were only decoded to reach another one. Files are closed between reads, so that processes can be
    forked and objects pickled; every read checks that the files have not changed.

    :param name: Name of the camera
    :param paths: Paths of the files
    :param files: ``(N,)``, number of each image's file
    :param cache: Cache, which several cameras may share
    :param image_size: Height and width to which images are resized; None: not resized
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        files: np.ndarray,
        cache: BlockCache,
        image_size: tuple[int, int] | None,
    ) -> None:
        self.name = name
        self.paths = [os.path.abspath(path) for path in paths]
        self.cache = cache
        self.keeps_all = False
        """Whether the cache is large enough for the images of all cameras."""
        self._files = files
        self._states = [file_state(path) for path in self.paths]
        self._image_size = image_size
        # Height and width of the images in the files, and information for decoding
        self._stored: tuple[int, int] = (0, 0)
        with readable(self.paths[0], self._states[0]):
            self._look_into(self.paths[0])
        self.image_shape: tuple[int, ...] = (*(image_size or self._stored), 3)
        self._numbers = np.empty(0, np.int64)

    @abstractmethod
    def _look_into(self, path: str) -> None:
        """:param path: The first file, from which information for decoding is read"""

    @abstractmethod
    def _decode(self, path: str, numbers: list[int]) -> Iterator[tuple[int, Any]]:
        """
        :param path: One of the files
        :param numbers: Numbers of the images to decode, ascending
        :return: Decoded images with their numbers; they include the requested ones
        """

    @abstractmethod
    def _to_array(self, image: Any) -> np.ndarray:
        """
        :param image: Decoded image
        :return: uint8 ``(height, width, 3)``
        """

    def __len__(self) -> int:
        return len(self._files)

    @property
    def nbytes(self) -> int:
        return len(self) * math.prod(self.image_shape)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """
        :param rows: ``(B,)`` integers in [0, len(self))
        :return: uint8 ``(B, height, width, 3)``
        :raises OSError: if a file has changed, is damaged, or lacks an image
        """
        images = np.empty((len(rows), *self.image_shape), np.uint8)
        wanted: dict[int, dict[int, list[int]]] = {}
        for position, (file, number) in enumerate(zip(self._files[rows].tolist(), self._numbers[rows].tolist(), strict=True)):
            wanted.setdefault(file, {}).setdefault(number, []).append(position)
        for file in sorted(wanted):
            path = self.paths[file]
            key = f"{self.name} {path}"
            for number, positions in list(wanted[file].items()):
                image = self.cache.blocks.get((key, number))
                if image is not None:
                    images[positions] = image
                    del wanted[file][number]
            if wanted[file]:
                with readable(path, self._states[file]):
                    self._read(path, key, wanted[file], images)
        return images

    def _read(self, path: str, key: str, wanted: dict[int, list[int]], images: np.ndarray) -> None:
        """
        :param path: One of the files
        :param key: Key of its images in the cache
        :param wanted: Number of an image -> its positions in ``images``
        :param images: Array to fill
        """
        for number, image in self._decode(path, sorted(wanted)):
            positions = wanted.pop(number, None)
            if positions is None and (not self.keeps_all or self.cache.blocks.get((key, number)) is not None):
                continue
            array = self._to_array(image)
            if positions is not None:
                images[positions] = array
            self.cache.put((key, number), array)
        if wanted:
            raise ValueError(f"it has no image number {min(wanted)} of `{self.name}`")

    def _check_size(self, height: int, width: int) -> None:
        """:raises ValueError: if an image has another size than the first one, or is implausibly large"""
        if self._stored == (0, 0):
            if not 0 < height * width <= _MAX_PIXELS:
                raise ValueError(f"`{self.name}` has images of {height}x{width}")
            self._stored = (height, width)
        if (height, width) != self._stored:
            raise ValueError(f"`{self.name}` has images of {height}x{width} and of {self._stored[0]}x{self._stored[1]}")


class VideoFrames(DecodedImages):
    """
    The frames of a camera whose images are in videos.

    :param times: ``(N,)``, time of each image in its video, in seconds
    :param fps: Frame rate of the data set; videos may have a multiple of it
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        files: np.ndarray,
        times: np.ndarray,
        fps: float,
        cache: BlockCache,
        image_size: tuple[int, int] | None,
    ) -> None:
        import_av()
        self._rate = fps
        self._spacing = 1
        super().__init__(name, paths, files, cache, image_size)
        self._numbers = np.rint(times * self._rate).astype(np.int64)

    def _look_into(self, path: str) -> None:
        with _open_video(path) as container:
            stream = container.streams.video[0]
            self._rate *= max(1, round(float(stream.average_rate or self._rate) / self._rate))
            # Distance between key frames: decoding another frame requires all frames since the last key frame
            found = [n for n, packet in zip(range(_MAX_PACKETS), container.demux(stream), strict=False) if packet.is_keyframe]
            self._spacing = found[1] - found[0] if len(found) > 1 else _MAX_PACKETS
            self._check_size(stream.codec_context.height, stream.codec_context.width)

    def _decode(self, path: str, numbers: list[int]) -> Iterator[tuple[int, Any]]:
        with _open_video(path) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1  # do not decode frames in advance; there may be many processes
            position = 0
            while position < len(numbers):
                aim = numbers[position]
                for number, frame in self._frames_from(container, stream, aim):
                    yield number, frame
                    while position < len(numbers) and numbers[position] <= number:
                        position += 1
                    is_far = position < len(numbers) and numbers[position] - number > self._spacing // 2 + 1
                    if position == len(numbers) or (number >= aim and is_far):
                        break
                else:
                    return

    def _frames_from(self, container: Any, stream: Any, number: int) -> Iterator[tuple[int, Any]]:
        """
        :param container: The open video
        :param stream: Its video stream
        :param number: Number of a frame
        :return: The frames and their numbers, starting with the last key frame at or before this frame
        """
        start = stream.start_time or 0
        aim = number
        while True:
            time = 0.0 if aim == 0 else (aim + 0.25) / self._rate  # slightly later, because times are rounded
            container.seek(start + int(time / stream.time_base), stream=stream)
            frames = ((round(float((f.pts - start) * stream.time_base) * self._rate), f) for f in container.decode(stream))
            first = list(itertools.islice(frames, 1))
            if not first or first[0][0] <= number or aim == 0:
                break
            # The frame depends on an earlier key frame
            aim = max(0, 2 * aim - first[0][0] - self._spacing)
        yield from first
        yield from frames

    def _to_array(self, image: Any) -> np.ndarray:
        self._check_size(image.height, image.width)
        if self._image_size is None:
            return image.to_ndarray(format="rgb24")
        height, width = self._image_size
        return image.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA")


class EncodedImages(DecodedImages):
    """
    The images of a camera that are stored as PNG or JPEG in the rows of tables.

    :param rows: ``(N,)``, row of each image in its table
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        files: np.ndarray,
        rows: np.ndarray,
        cache: BlockCache,
        image_size: tuple[int, int] | None,
    ) -> None:
        import_pillow()
        super().__init__(name, paths, files, cache, image_size)
        self._numbers = rows

    def _look_into(self, path: str) -> None:
        for _, data in self._decode(path, [0]):
            self._open(data)
            break

    def _decode(self, path: str, numbers: list[int]) -> Iterator[tuple[int, Any]]:
        with open_parquet(Path(path)) as parquet:
            if self.name not in parquet.schema_arrow.names:
                raise UnusableFileError(f"it has no column `{self.name}`")
            start = 0
            for group in range(parquet.num_row_groups):
                stop = start + parquet.metadata.row_group(group).num_rows
                inside = [number for number in numbers if start <= number < stop]
                if inside:
                    batches = parquet.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[self.name], use_threads=False)
                    for batch in batches:
                        data = batch.column(batch.schema.get_field_index(self.name))
                        yield from enumerate(self._bytes(data), start)
                        start += len(batch)
                        if start > inside[-1] and not self.keeps_all:
                            break
                start = stop

    def _bytes(self, column: Any) -> list[bytes]:
        """
        :param column: Column of a table
        :return: The encoded images in it
        :raises UnusableFileError: if it does not contain images
        """
        names = [column.type.field(i).name for i in range(column.type.num_fields)]
        data: list[Any] = column.field("bytes").to_pylist() if "bytes" in names else [None]
        if None in data:
            raise UnusableFileError(
                f"`{self.name}` has file names or empty entries instead of images: the recording is incomplete. Record or "
                "fetch it again"
            )
        return data

    def _open(self, data: bytes) -> Any:
        """:return: The image; only its header is read"""
        # Only these formats, because some of Pillow's formats start other programs
        image = import_pillow().open(io.BytesIO(data), formats=["PNG", "JPEG"])
        if image.mode[0] in "IF":
            raise UnusableFileError(
                f"`{self.name}` does not contain color images but, for example, depth images (mode {image.mode})"
            )
        self._check_size(image.height, image.width)
        return image

    def _to_array(self, image: bytes) -> np.ndarray:
        picture = self._open(image).convert("RGB")
        if self._image_size is not None:
            height, width = self._image_size
            picture = picture.resize((width, height), import_pillow().Resampling.BOX)
        return np.array(picture)


def import_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError(f"The videos of LeRobot data sets need av, which is not installed: {INSTALL}") from error
    return av


def import_pillow() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(f"The images of LeRobot data sets need pillow, which is not installed: {INSTALL}") from error
    return Image


def _open_video(path: str) -> Any:
    """:return: The open video. It must be MP4, because some other formats are lists of further files and URLs"""
    return import_av().open(path, format="mov", options={"protocol_whitelist": "file"})
