"""The profiler on a tiny model: a whole grid, honest marks, exact sums, resumption, and a budget that is kept."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

from exegpt_jax.profiler import measure
from exegpt_jax.profiler.grid import Limits, Point, axes_of, points_of, short_specs
from exegpt_jax.profiler.journal import Journal
from exegpt_jax.profiler.measure import Wishes, profile_model
from exegpt_jax.profiler.probe import Probe, Sample, shorten
from exegpt_jax.profiler.tables import Overheads, fill, overheads, spread_of, tables_of
from exegpt_jax.sharding.mesh import make_mesh
from exegpt_jax.sharding.stage import Stage, blueprint
from serving import cli
from serving.commands import profile as command
from solver.facts import presets
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import LayerKind, LayerRun, ModelSpec
from solver.facts.profile import Mark, Profile
from solver.facts.profile_file import check_fits, read_profile, to_text
from solver.plan.plan import CALL_TOKENS, make_buckets
from solver.plan.schedule import Schedule, StageSpec
from tests.exegpt_jax.tiny_models import spec_of, stage_spec, write_model

LIMITS = Limits(max_rows=12, cache_tokens=60, max_prompt_tokens=32)
WISHES = Wishes(LIMITS, repeats=3, time_budget_s=300)
# As few programs as a profile can have: each takes about a second to compile.
SMALLEST = Limits(max_rows=1, cache_tokens=20, max_prompt_tokens=8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "llama"
    write_model("llama", directory)
    return directory


@pytest.fixture
def fresh_flags() -> Iterator[None]:
    """Flags of the command keep their values within a process; a test leaves none behind."""
    yield
    for name in command.FLAGS:
        command.FLAGS[name].unparse()


def whole(profile: Profile, spec: ModelSpec, call: str, rows: int, tokens: int) -> float:
    """What a profile says of one call of the whole model."""
    end = profile.end(1)
    ends = float(end.head.at(rows, 0)) + float(end.embed.at(rows * (tokens if call == "encode" else 1), 0))
    times = [getattr(profile.layer(1, kind), call) for kind in spec.layer_kinds()]
    return ends + sum(float(table.at(rows, tokens)) for table in times)


def test_real_programs_are_timed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    if not full:  # its programs would double the time of this test
        make_up_host_parts(monkeypatch)
    found = profile_model(model, Wishes(SMALLEST, repeats=1), tmp_path / "samples.jsonl")
    assert (found.points_measured, found.points, found.samples) == (4, 4, 6)
    check_fits(found.profile, spec_of("llama"), "cpu", "float32")
    layer, end = found.profile.layer(1, LayerKind()), found.profile.end(1)
    for table in (layer.encode, layer.decode, end.embed, end.head):
        assert (table.seconds > 0).all()
    assert found.profile.phase_s >= 0
    for samples in read_samples(tmp_path / "samples.jsonl").values():
        assert all((sample.single_s or sample.seconds) >= sample.host_s for sample in samples)  # the call it is part of


def test_grid_is_whole_marks_are_right_and_a_killed_run_goes_on(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    partial = tmp_path / "samples.jsonl"
    taken: list[str] = []

    def jittered(self: Probe) -> Sample:
        taken.append(self.point.key)
        return made_up(self.point, jitter=1 + 0.01 * (len(taken) % 7))

    monkeypatch.setattr(Probe, "__init__", fake_open)
    monkeypatch.setattr(Probe, "sample", jittered)
    make_up_host_parts(monkeypatch)

    def killed(done: int, total: int, note: str) -> None:
        if done == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profile_model(model, WISHES, partial, killed)
    with partial.open("a") as file:
        file.write('{"point": "cut sho')
    assert len(taken) == 50
    found = profile_model(model, WISHES, partial)
    spec = spec_of("llama")
    points = points_of(spec, 1, LIMITS)
    assert sorted(taken) == sorted(WISHES.repeats * [point.key for point in points])
    assert (found.points_measured, found.points, found.resumed) == (len(points), len(points), 52)

    profile, axes = found.profile, axes_of(LIMITS)
    layer = profile.layer(1, LayerKind())
    for table, (first, second) in ((layer.encode, axes.of("encode")), (layer.decode, axes.of("decode"))):
        np.testing.assert_array_equal(table.first, first)
        np.testing.assert_array_equal(table.second, second)
        assert (table.marks == Mark.MEASURED).all()
    assert (profile.end(1).head.marks == Mark.INTERPOLATED).all()
    assert 0 < profile.spread < 0.07

    # Layers and ends add up to the medians of the whole model.
    samples = read_samples(partial)
    costs = overheads(points, samples)
    for point in points:
        if point.cut == "whole":
            fixed_s = costs.dispatch_s if point.call == "encode" else costs.phase_s
            times = [(s.seconds - fixed_s) / max(1, s.iterations) for s in samples[point.key]]
            assert whole(profile, spec, point.call, point.rows, point.tokens) == pytest.approx(np.median(times))

    # Once more: nothing is left to measure, and the same comes out.
    before = len(taken)
    again = profile_model(model, WISHES, partial)
    assert len(taken) == before
    assert to_text(again.profile) == to_text(profile)


def read_samples(partial: Path) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for line in partial.read_text().splitlines()[1:]:
        entry = json.loads(line)
        found.setdefault(entry.pop("point"), []).append(Sample(**entry))
    return found


def test_the_budget_is_kept_and_what_it_leaves_out_is_marked(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no time at all the corners are measured once, and nothing else."""
    monkeypatch.setattr(Probe, "__init__", fake_open)
    monkeypatch.setattr(Probe, "sample", lambda self: made_up(self.point))
    make_up_host_parts(monkeypatch)
    limits = Limits(max_rows=8, cache_tokens=64, max_prompt_tokens=40)
    found = profile_model(model, Wishes(limits, time_budget_s=1e-6, repeats=7), tmp_path / "a.jsonl")
    corners = [point for point in points_of(spec_of("llama"), 1, limits) if point.level == 0]
    assert (found.points_measured, found.samples) == (len(corners), len(corners) + 2)
    assert found.points_measured < found.points
    encode = found.profile.layers[0].encode
    assert (encode.marks == Mark.MEASURED).sum() == 4
    assert (encode.marks == Mark.INTERPOLATED).sum() == encode.marks.size - 4
    assert (encode.seconds > 0).all()
    # A longer budget goes on from there, and fills the grid.
    full = profile_model(model, Wishes(limits, time_budget_s=300, repeats=7), tmp_path / "a.jsonl")
    assert full.resumed == len(corners) + 2
    assert (full.profile.layers[0].encode.marks == Mark.MEASURED).all()
    assert full.samples == 7 * full.points + 2


def make_up_host_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samples that take programs of their own."""
    for costly in ("runner_gap_s", "stage_dispatch_s"):
        monkeypatch.setattr(measure, costly, lambda *_: 1e-4)


def fake_open(self: Probe, point: Point, stage: object, cache_dtype: str) -> None:
    self.point = point


def made_up(point: Point, layers: int = 3, jitter: float = 1.0) -> Sample:
    """Times by a formula: ends of 1 ms and 10 us a row, 2 us a token; layers by their work."""
    depth = layers if point.cut == "whole" else 1
    tokens = point.rows * (point.tokens if point.call == "encode" else 1)
    work = depth * (1e-4 * tokens + 1e-6 * point.rows * point.tokens) + 1e-3 + 1e-5 * point.rows + 2e-6 * tokens
    work *= jitter
    if point.call == "encode":
        return Sample(work + 5e-4, 0.0, 0, 5e-4)
    return Sample(work * 8 + 3e-4, work + 3e-4, 8, 1e-4)


def test_split_finds_the_layers_and_ends_that_times_were_made_of() -> None:
    spec = spec_of("llama")
    points, axes = points_of(spec, 1, LIMITS), axes_of(LIMITS)
    samples = {point.key: [made_up(point)] for point in points}
    costs = overheads(points, samples)
    assert (costs.dispatch_s, costs.phase_s) == (pytest.approx(5e-4), pytest.approx(3e-4))
    (layer,), end = tables_of(spec, axes, points, samples, costs)
    rows = np.array([1.0, 3.0, 12.0])
    np.testing.assert_allclose(layer.decode.at(rows, 60.0), 1e-4 * rows + 1e-6 * rows * 60)
    np.testing.assert_allclose(layer.encode.at(rows, 32.0), 1e-4 * rows * 32 + 1e-6 * rows * 32)
    np.testing.assert_allclose(end.head.at(rows, 0.0), 1e-3 + 1e-5 * rows)
    np.testing.assert_allclose(end.embed.at(np.array([1.0, 384.0]), 0.0), 2e-6 * np.array([1, 384]))
    assert spread_of(samples) == 0.0


def test_layers_of_several_kinds_are_told_apart() -> None:
    near, far = LayerKind(window_tokens=8), LayerKind()
    spec = ModelSpec(**{**vars(spec_of("llama")), "layers": (LayerRun(near, 4), LayerRun(far, 2))})
    limits = Limits(max_rows=4, cache_tokens=60, max_prompt_tokens=32)
    points, axes = points_of(spec, 1, limits), axes_of(limits)

    def seconds(point: Point) -> float:
        one = [1e-5 * point.rows * min(point.tokens, 8), 1e-5 * point.rows * point.tokens]
        layers = 4 * one[0] + 2 * one[1] if point.cut == "whole" else one[point.kind]
        return 1e-4 * point.rows + layers

    samples = {p.key: [Sample(seconds(p), seconds(p), 1, 0.0)] for p in points}
    layers, end = tables_of(spec, axes, points, samples, Overheads(0.0, 0.0))
    assert [times.kind for times in layers] == [near, far]
    np.testing.assert_allclose(layers[0].decode.at(4.0, np.array(axes.contexts)), 1e-5 * 4 * 8)
    np.testing.assert_allclose(layers[1].decode.at(4.0, np.array(axes.contexts)), 1e-5 * 4 * np.array(axes.contexts))
    np.testing.assert_allclose(end.head.seconds[:, 0], 1e-4 * np.array(axes.decode_rows), rtol=1e-6)


def zeros(spec: ModelSpec) -> Stage:
    """A stage whose arrays need no program to make."""
    plan = blueprint(spec, stage_spec(spec), "float32", make_mesh(jax.devices()[:1]))
    return plan.bind([jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding) for leaf in plan.leaves])


def test_short_models_are_made_of_the_models_own_arrays() -> None:
    spec = spec_of("llama")
    stage = zeros(spec)
    (short,) = short_specs(spec)
    cut = shorten(stage, short)
    assert short.num_layers == 1
    held = {leaf.path: array for leaf, array in zip(stage.blueprint.leaves, stage.params, strict=True)}
    for leaf, array in zip(cut.blueprint.leaves, cut.params, strict=True):
        assert array is held[leaf.path]
    # A model of one layer is told from its ends by twice that layer.
    single = ModelSpec(**{**vars(spec), "layers": (LayerRun(LayerKind(), 1),)})
    (double,) = short_specs(single)
    twice = shorten(zeros(single), double)
    assert len({id(array) for array in twice.params}) < len(twice.params)


def test_grid_holds_the_engines_own_rungs_and_its_corners_come_first() -> None:
    spec = spec_of("llama")
    limits = Limits(max_rows=40, cache_tokens=1500, max_prompt_tokens=700)
    schedule = Schedule("rra", 40, 4, 40, 40, (StageSpec("both", (0, 1), (0,), 1),), 40, 40)
    buckets = make_buckets(schedule, limits.cache_tokens, limits.max_prompt_tokens)
    axes = axes_of(limits)
    assert (axes.encode_tokens, axes.contexts) == (buckets.encode_tokens, buckets.cache_tokens)
    points = points_of(spec, 1, limits)
    assert len({point.key for point in points}) == len(points)
    assert [point.level for point in points] == sorted(point.level for point in points)
    decode = {(p.rows, p.tokens) for p in points if p.call == "decode" and p.cut == "whole"}
    assert decode == set(itertools.product(axes.decode_rows, axes.contexts))
    for point in points:
        assert point.call == "decode" or point.rows * point.tokens <= CALL_TOKENS
    corners = {(p.rows, p.tokens) for p in points if p.call == "decode" and p.cut == "whole" and p.level == 0}
    assert corners == set(itertools.product((1, 40), (axes.contexts[0], axes.contexts[-1])))


def test_gaps_are_filled_between_and_beyond() -> None:
    nan = np.nan
    raw = np.array([[1.0, nan, 3.0], [nan, nan, nan], [3.0, nan, 7.0], [nan, nan, nan]])
    rows, tokens = np.array([1.0, 2.0, 3.0, 6.0]), np.array([10.0, 15.0, 20.0])
    expected = np.array([[1, 2, 3], [2, 3.5, 5], [3, 5, 7], [6, 10, 14]])
    np.testing.assert_allclose(fill(raw, rows, tokens), expected)
    with pytest.raises(ValueError, match="time_budget_s"):
        fill(np.full((4, 3), nan), rows, tokens)


def test_changed_facts_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "j"
    first = Journal(path, "a")
    first.add("x", Sample(1.0, 0.0, 0, 0.0))
    first.close()
    kept = Journal(path, "a")
    assert (kept.resumed, kept.samples["x"]) == (1, [Sample(1.0, 0.0, 0, 0.0)])
    kept.close()
    for anew in (Journal(path, "b"), Journal(path, "b", resume=False)):
        assert (anew.resumed, dict(anew.samples)) == (0, {})
        anew.close()
    path.write_text("garbage")
    Journal(path, "a").close()
    assert len(path.read_text().splitlines()) == 1


def test_wishes_that_cannot_be_are_refused_in_one_line(model: Path, tmp_path: Path) -> None:
    for wishes, complaint in (
        (Wishes(Limits(4, 128, 8)), "cache_tokens: 128 exceeds the model's 64"),
        (Wishes(LIMITS, tensor=(3,)), "tensor: 3 does not divide"),
        (Wishes(LIMITS, time_budget_s=0.0), "time_budget_s: 0.0"),
        (Wishes(LIMITS, time_budget_s=float("nan")), "time_budget_s: nan"),
        (Wishes(Limits(10**9, 48, 8)), "memory: device 0 needs"),
    ):
        with pytest.raises(ValueError, match=complaint):
            profile_model(model, wishes, tmp_path / "j")
    with pytest.raises(ValueError, match="max_prompt_tokens: 48 leaves no room"):
        Limits(4, 48, 48)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("shared_data", "fresh_flags")
def test_command_composes_from_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "p.json"
    arguments = ["profile", "--from_tables", f"--output={output}", "--model=llama-3-8b", "--device_kind=h100-80g"]
    assert cli.main([*arguments, "--tensor=2"]) == 0
    assert "llama-3-8b on h100-80g: bfloat16" in capsys.readouterr().out
    profile = read_profile(output)
    assert profile.tensor_degrees == (2,)
    check_fits(profile, read_model_spec(presets.find("models", "llama-3-8b")), "h100-80g", "bfloat16")
    for wish, complaint in (
        ("--tensor=3", "tensor: 3 is not in the tables"),
        ("--device_kind=abacus", "abacus"),
        (f"--tables={tmp_path}", "name the folder of published tables with --tables=DIR"),
    ):
        output.unlink(missing_ok=True)
        assert cli.main([*arguments, wish]) == 1
        assert complaint in capsys.readouterr().err
        assert not output.exists()


@pytest.mark.usefixtures("fresh_flags")
def test_command_writes_a_profile_that_serves_its_own_model_only(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Probe, "__init__", fake_open)
    monkeypatch.setattr(Probe, "sample", lambda self: made_up(self.point))
    make_up_host_parts(monkeypatch)
    output = tmp_path / "p.json.gz"
    arguments = ["profile", f"--model={model}", f"--output={output}", "--max_rows=4", "--cache_tokens=48"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    assert "decode" in printed.out
    assert "measured" in printed.err
    profile = read_profile(output)
    assert [path.name for path in tmp_path.iterdir()] == [output.name]
    check_fits(profile, spec_of("llama"), "cpu", "float32")
    with pytest.raises(ValueError, match="another model"):
        check_fits(profile, spec_of("qwen3"), "cpu", "float32")
    assert cli.main(["profile", f"--model={model}", f"--output={output}", "--tensor=0"]) == 1
    assert "tensor: '0' is no list of degrees" in capsys.readouterr().err
    assert cli.main(["profile", f"--model={model}", "--output=", "--tensor=1"]) == 1
    assert "output: not given" in capsys.readouterr().err
