"""The numbers of docs/speed.md are those of the results."""

import json
import re
from typing import Any

import pytest

from benchmarks.provenance import ROOT

PAGE = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
RESULTS = ROOT / "benchmarks/results"
INTEL = "On an Intel processor"


def result(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return found


def rows(section: str) -> dict[str, list[str]]:
    """:return: first cell -> the other cells, of all tables of a section"""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return {first: others for first, *others in cells if not first.startswith("-")}


def agrees(text: str, number: float) -> bool:
    """Whether the first number of a cell is this one, rounded to as many digits as the cell has."""
    match = re.search(r"\d+(?:\.(\d+))?", text)
    assert match, text
    return abs(float(match[0]) - number) <= 0.5001 * 10 ** -len(match[1] or "")


TARGETS = {
    "Sampling chains at batch 40, over products": ("sampling", "sampling at batch 40 over its matrix products"),
    "Sequential sampling at batch 40, over ours": ("sampling", "sequential sampling at batch 40 over ours"),
    "`predict(deterministic=True)`, one observation": ("sampling", "deterministic predict at batch 1, milliseconds"),
    "The same by a compiled `ActionSampler`": ("sampling", "compiled ActionSampler at batch 1, milliseconds"),
    "Update on 4000 chains, over products (forward and backward)": ("update", "update of 4000 chains over its products"),
    "Behavior cloning, over products": ("cloning", "behavior cloning over its products"),
}


@pytest.mark.parametrize(("section", "folder"), [("Targets", "speed"), (INTEL, "speed/intel")])
def test_targets_are_those_measured(section: str, folder: str) -> None:
    table = rows(section)
    for row, (part, name) in TARGETS.items():
        target, measured, met = table[row]
        targets = result(f"{folder}/{part}.json")["targets"]
        entry = targets.get(name) or targets[name.replace("behavior", "behaviour")]  # an older file's spelling
        assert agrees(target, entry.get("at_most", entry.get("at_least")))
        assert agrees(measured, entry["measured"]), (row, measured, entry)
        assert met.startswith("yes" if entry["passed"] else "**no**"), row


def test_update_on_intel() -> None:
    ratios = result("speed/intel/update.json")["ratio"]
    whole, parts = ratios["minibatches of 4000"], ratios["minibatches of 250"]
    text = " ".join(PAGE.split())
    sequential, ppo = ([of[name] for of in (whole, parts)] for name in ("sequential_to_update", "update_to_sb3_ppo"))
    assert f"takes {sequential[0]:.2f} times as long in one minibatch and {sequential[1]:.2f} times in minibatches" in text
    assert f"takes {ppo[0]:.1f} and {ppo[1]:.1f} times that of PPO with the same widths." in text
    critic = result("speed/intel/rldt.json")["ratio"]["critic_steps_to_products"]
    assert f"RLDT's critic steps take {critic:.2f} times their products" in text


def test_one_action_on_intel() -> None:
    times = result("speed/intel/sampling.json")["one action, milliseconds"]
    table = rows(INTEL)
    names = {
        "`predict`": "predict",
        "`ActionSampler`": "sampler",
        "the same by `torch.export`": "exported",
        "the same by `torch.compile`": "compiled",
        "an ONNX file by onnxruntime": "onnx",
    }
    assert set(names.values()) == set(times)
    for row, name in names.items():
        assert agrees(table[row][0], times[name]) and agrees(table[row][1], times["predict"] / times[name]), row


def test_kept_memory() -> None:
    updates, table = result("speed/intel/pages.json")["updates"], rows("Memory that is kept")
    ways = {
        "nothing": "nothing done",
        "variables": "glibc's variables at 1 GiB",
        "mallopt: threshold of 1 GiB, no trimming": "`mallopt` (what the package does)",
        "blocks of 2000 chains": "blocks of 2,000 chains",
    }
    for chains in (4000, 10_000):
        for name, way in ways.items():
            entry, (ratio, faults, peak) = updates[f"{chains} chains"][name], table[f"{chains:,}, {way}"]
            assert agrees(ratio, entry["update_to_products"]), (chains, way)
            assert faults == f"{entry['page_faults_per_update']:,}" and peak == str(entry["peak_megabytes"])
            assert entry["accepted"]


def test_memory() -> None:
    found, text = result("speed/memory.json"), " ".join(PAGE.split())
    names = ("n_steps", "denoising_steps", "batch_size")
    cases = {tuple(case[name] for name in names): case for case in found["cases"] if case["algorithm"] == "ScoReFlowPPO"}
    (imports,) = (case["peak_megabytes"] for case in found["cases"] if case["algorithm"] == "imports")

    def difference(larger: tuple[int, int, int], smaller: tuple[int, int, int], what: str) -> float:
        return float(cases[larger][what] - cases[smaller][what])

    rollout, of_buffer = (difference((1600, 4, 250), (100, 4, 250), f"{what}_megabytes") for what in ("peak", "buffer"))
    batch = difference((100, 4, 4000), (100, 4, 1000), "peak_megabytes")
    assert f"added {rollout:.0f} MB ({of_buffer:.0f} MB of them in the buffer), and a minibatch" in text
    assert f"of 4000 chains instead of 1000 added {batch:.0f} MB." in text
    assert f"importing PyTorch, Gymnasium and Stable-Baselines3 takes {round(imports, -1):.0f} MB" in text
    same, different = found["peak_megabytes_of_400_gradients"].values()
    assert f"minibatches of 400 different sizes took {different - same:.0f} MB more" in text


def test_training() -> None:
    found, text = result("speed/training.json"), " ".join(PAGE.split())
    ratio = found["ratio"]
    wide, narrow = (ratio[f"Hopper-v5, chunks of 4, {name}"] for name in ("512x3", "defaults"))
    assert f"run at {wide['bound_by_products']:.2f} of random stepping" in text
    assert f"(256x2) it runs at {narrow['training_to_random']:.2f}." in text
    cheetah, pendulum = (ratio[f"{env}, defaults"]["training_to_sb3_ppo"] for env in ("HalfCheetah-v5", "Pendulum-v1"))
    assert f"runs at {cheetah:.2f} (HalfCheetah-v5) and {pendulum:.2f} (Pendulum-v1) times" in text
    table = rows("Targets")
    for row, name in {
        "HalfCheetah": "HalfCheetah-v5",
        "Hopper in chunks": "Hopper-v5, chunks of 4",
    }.items():
        shares = [found["split"][f"{name}, defaults"][part] for part in ("update", "policy", "environments")]
        assert table[row] == [f"{100 * share:.0f}%" for share in shares], row
    slower = {f"{of['sequential_to_update']:.1f}" for of in result("speed/update.json")["ratio"].values()}
    assert [f"update takes {times} times as long sequentially" in text for times in slower] == [True]
    over_ppo = [of["update_to_sb3_ppo"] for of in result("speed/update.json")["ratio"].values()]
    assert f"takes {min(over_ppo):.1f} to {max(over_ppo):.1f} times as long as that of PPO" in text
    chunk = 4e3 / found["env_steps_per_second"]["Hopper-v5, chunks of 4, 512x3"]["random"]
    assert f"A chunk of Hopper costs {chunk:.1f} ms on this machine" in text
    ratio = result("speed/sampling.json")["ratio"]["batch 40, K 4"]
    ours = ratio["chain_to_products"]
    sequential = ours * ratio["sequential_to_chain"]
    assert f"takes {sequential:.1f} times the bare products, which it also has to compute, and ours takes {ours:.2f}" in text


def test_threads() -> None:
    found, table = result("speed/threads.json")["env_steps_per_second"], rows("Threads")
    for threads in (1, 2, 4, 8):
        alone, together, processes = table[str(threads)]
        dummy = f"dummy, 8 envs, 256x3, {threads} threads"
        assert alone == str(found[dummy]) and together.strip("*") == str(found[f"{dummy}, 2 at once"])
        assert processes == str(found.get(f"subproc, 8 envs, 256x3, {threads} threads", ""))
    gains = [
        found[f"dummy, 8 envs, {net}, 2 threads"] / found[f"dummy, 8 envs, {net}, 1 threads"] - 1 for net in ("256x3", "512x3")
    ]
    assert f"brings {100 * gains[0]:.0f}% ({100 * gains[1]:.0f}% with 512x3)" in PAGE


def test_bfloat16() -> None:
    found, table = result("bfloat16/summary.json"), rows("bfloat16")
    for name, entry in found["speed"].items():
        assert agrees(table[name.capitalize()][0], entry["bfloat16_to_float32"]), name
    deviation, error = found["first_ratio"]["bfloat16"], found["mean_cloning_error"]
    text = " ".join(PAGE.split())
    assert f"off by {deviation['mean']:.4f} on average and by {deviation['largest']:.4f} at most" in text
    assert f"({error['bfloat16']}; float32 {error['float32']})" in text


def test_bfloat16_learning() -> None:
    found, table, text = result("bfloat16_learning/summary.json")["Hopper-v5"], rows("bfloat16"), " ".join(PAGE.split())
    for kind in ("exploring", "deterministic"):
        of_kind = found[f"return_{kind}"]
        for cell, name in zip(table[kind], ("float32", "bfloat16", "difference"), strict=True):
            low, high = of_kind[name]["ci95"]
            assert cell == f"{of_kind[name]['mean']:.0f} ({low:.0f} to {high:.0f})"
        assert max(of_kind["difference"]["per_seed"]) < 0
    *ratios, last = (f"{ratio:.2f}" for ratio in found["cpu_seconds"]["ratios"])
    assert f"takes {', '.join(ratios)} and {last} times the processor time" in text
    assert f"up to {found['timesteps']:,} chunks" in text


def test_numbers_are_compared_at_the_digits_that_are_there() -> None:
    assert agrees("at most 2.0", 2.0) and agrees("1.06 ms", 1.056) and not agrees("1.05 ms", 1.056)
    with pytest.raises(AssertionError, match="nothing"):
        agrees("nothing", 1.0)
