"""For docs/demonstrations.md: the embedded demonstrations, and the memory that robomimic's images take."""

from typing import Any

from benchmarks.tables.cells import Tables, markdown, page, result
from benchmarks.tables.numbers import Number

PAGE = page("demonstrations")
#: Layout and cache (MB) of a case of ``benchmarks.robomimic_memory`` -> label, with a placeholder for the file's size in MB
_FILES: dict[tuple[str, Any], str] = {
    ("uncompressed", 256.0): "uncompressed, {} MB",
    ("gzip", 256.0): "gzip ({} MB, h5py's chunks), larger than the cache",
    ("gzip", 2048.0): "gzip, all in the cache",
    ("gzip, chunks of one image", 256.0): "gzip, chunks of one image, larger than the cache",
    ("uncompressed", "in memory"): "for comparison: all images in an array",
}


def _time(milliseconds: float) -> str:
    if milliseconds < 10:
        return f"{milliseconds:.1f} ms"
    return f"{milliseconds / 1000:.2f} s" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def robomimic_memory() -> str:
    found = result("robomimic_memory")
    cases = {(case["layout"], case["cache_mb"]): case for case in found["cases"]}
    rows = []
    for (layout, cache), label in _FILES.items():
        case = cases[layout, cache]
        shown = "" if cache == "in memory" else "(not used)" if layout == "uncompressed" else f"{cache:.0f} MB"
        file = label.format(f"{found['file_mb'][layout]:.0f}")
        rows.append((file, shown, f"{case['peak_growth_mb']:.0f} MB", _time(case["batch_ms"]["cpu"])))
    return markdown(("File", "`cache_bytes`", "Growth of the peak memory", "Processor time per batch"), rows)


def _setting() -> list[str]:
    setting = result("robomimic_memory")["setting"]
    return [f"{setting['images']:,}".replace(",", " "), f"{setting['images_mb'] / 1000:.2f}", str(setting["batch_size"])]


def _embedded(name: str) -> dict[str, float]:
    found: dict[str, float] = result(f"{name}-medium.json")["recording"]["statistics"]
    return found


def _walker2d() -> list[str]:
    statistics = _embedded("walker2d")
    return [f"{statistics['n_episodes']:.0f}", f"{statistics['return_mean']:.0f}"]


def _halfcheetah() -> list[str]:
    statistics = _embedded("halfcheetah")
    assert statistics["length_min"] == statistics["length_max"]
    return [f"{statistics[name]:.0f}" for name in ("n_episodes", "length_mean", "return_mean")]


TABLES: Tables = {"robomimic_memory": (PAGE, robomimic_memory)}
NUMBERS = [
    Number(PAGE, "{} images of 84x84, {} GB, in batches of {}", _setting),
    Number(PAGE, "{} episodes, mean return {}", _walker2d),
    Number(PAGE, "{} episodes of {} steps, mean return {}", _halfcheetah),
]
