"""The grid's order, its table, and processes that share the work."""

from __future__ import annotations

import json
import multiprocessing
import time

import pytest

from benchmarks.paper.__main__ import parse_arguments, select_jobs
from benchmarks.paper.cells import RunOptions
from benchmarks.paper.datasets import parse_reference
from benchmarks.paper.grid import DISCRETE_METHODS, METHODS, SUITES, Budget, Cell, order_cells
from benchmarks.paper.rows import append_row, latest_rows, read_rows
from benchmarks.paper.settings import digest_settings, find_settings
from benchmarks.paper.tuning import SEARCH_SIZE, SPACES, choose_settings, search_jobs
from benchmarks.paper.variants import VARIANTS, named_variants
from benchmarks.paper.workers import find_open_cells, work
from benchmarks.paper.world_models import WORLD_MODELS
from torchrl_logo.data import collect
from torchrl_logo.envs import make_env
from torchrl_logo.objectives import LOGOWorldModelLoss
from torchrl_logo.trainers import OfflineTrainer
from torchrl_logo.trainers.methods import METHODS as METHODS_BY_NAME

BUDGET = Budget(10, 10)
# of a fixed name, so that nothing has to be loaded to know its actions
DATASET = "vmas/balance-medium"


def make_row(cell, settings=None, **values):
    return {
        "dataset": cell.dataset,
        "method": cell.method,
        "variant": cell.variant,
        "seed": cell.seed,
        "steps": cell.budget.steps,
        "world_model_steps": cell.budget.world_model_steps,
        "discrete": False,
        "settings": settings or {},
        "settings_digest": digest_settings(settings or {}),
        "return": 1.0,
        "normalized": 1.0,
        "seconds": 0.0,
        "world_model_seconds": 0.0,
        "evaluation_seconds": 0.0,
        **values,
    }


def write_slowly(cell, options, settings):
    """Stands in for a training; remembers who was at work, and when."""
    (options.folder / "order").mkdir(exist_ok=True)
    time.sleep(0.05)
    with (options.folder / "order" / "all").open("a") as file:
        file.write(f"{cell}\n")
    return make_row(cell, settings)


def jobs_of(seeds=(0, 1), methods=("logo", "bc", "macql")):
    pairs = [(method, "") for method in methods]
    return [
        (cell, {}) for cell in order_cells([DATASET, "vmas/wheel-medium"], pairs, seeds, BUDGET)
    ]


def test_every_prefix_of_the_order_is_a_fair_comparison():
    suite = SUITES["vmas"]
    cells = order_cells(suite.datasets, [(m, "") for m in METHODS], range(5), BUDGET)
    assert len(cells) == len({cell.key for cell in cells}) == 16 * 13 * 5
    for end in range(0, len(cells), 7):
        runs: dict[str, dict[str, int]] = {}
        for cell in cells[:end]:
            counts = runs.setdefault(cell.dataset, dict.fromkeys(METHODS, 0))
            counts[cell.method] += 1
        for counts in runs.values():
            assert max(counts.values()) - min(counts.values()) <= 1
    # cheap datasets, and those that the claims speak of, come first
    assert [c.dataset for c in cells[::13]][:5] == suite.datasets[:5]
    assert suite.datasets[0] == "vmas/balance-medium-replay"


def test_methods_without_a_discrete_form_are_left_out_of_discrete_datasets():
    cells = order_cells(["a", "b"], [(m, "") for m in METHODS], [0], BUDGET, discrete=["b"])
    assert {c.method for c in cells if c.dataset == "a"} == set(METHODS)
    assert {c.method for c in cells if c.dataset == "b"} == set(DISCRETE_METHODS)


def test_variants_are_selected_by_name_and_shared_cells_run_once():
    args = parse_arguments(
        ["run", "--datasets", DATASET, "--variants", "logo:horizon-5", "--methods", "logo"]
        + ["--seeds", "3"]
    )
    assert [str(cell) for cell, _ in select_jobs(args)] == [
        f"{DATASET} logo seed 3",
        f"{DATASET} logo:horizon-5 seed 3",
    ]
    args = parse_arguments(["run", "--suite", "vmas", "ablations", "--seeds", "0"])
    cells = [cell for cell, _ in select_jobs(args)]
    assert len(cells) == len(set(cells))
    assert Cell("vmas/wheel-medium-replay", "macql", "joint-model", 0, Budget()) in cells
    with pytest.raises(SystemExit, match="logo:horizon-15"):
        select_jobs(parse_arguments(["run", "--datasets", DATASET, "--variants", "logo:no"]))
    with pytest.raises(SystemExit, match="nowhere"):
        select_jobs(parse_arguments(["run", "--datasets", "nowhere"]))


def test_variants_switch_off_every_term_of_the_world_model():
    terms = {n.removeprefix("without-") for n in VARIANTS["logo"] if n.startswith("without-")}
    # masks are part of discrete tasks only
    used = {name for name, value in LOGOWorldModelLoss.default_coefficients.items() if value}
    assert terms == used - {"action_mask"}
    assert len(named_variants()) == len(set(named_variants()))


def test_references_to_own_datasets():
    reference = parse_reference("lab=data/a=b.h5?task=smac/3m&episodes=5&flag=true")
    assert (reference.label, reference.source) == ("lab", "data/a=b.h5")
    assert reference.options == {"task": "smac/3m", "episodes": 5, "flag": True}
    assert parse_reference("vmas/wheel-mixed?seed=3").label == "vmas/wheel-mixed?seed=3"
    with pytest.raises(ValueError):
        parse_reference("a?task")


def test_a_cut_off_last_line_is_run_again_and_leaves_no_trace(tmp_path):
    table = tmp_path / "rows.jsonl"
    jobs = jobs_of(seeds=(0,), methods=("logo", "bc"))
    for cell, _ in jobs[:2]:
        append_row(table, make_row(cell))
    content = table.read_bytes()
    table.write_bytes(content[:-20])
    with pytest.warns(UserWarning, match="cut off"):
        assert len(read_rows(table)) == 1
    assert find_open_cells(jobs, table) == jobs[1:]
    append_row(table, make_row(jobs[1][0]))
    assert table.read_bytes() == content
    assert find_open_cells(jobs, table) == jobs[2:]


def test_a_line_that_is_no_row_is_an_error(tmp_path):
    table = tmp_path / "rows.jsonl"
    table.write_text('{"dataset": "a"}\n')
    with pytest.raises(ValueError, match="line 1.*method"):
        read_rows(table)
    table.write_text("nonsense\n" + json.dumps(make_row(jobs_of()[0][0])) + "\n")
    with pytest.raises(ValueError, match="line 1"):
        read_rows(table)


def test_other_settings_or_budgets_are_other_runs(tmp_path):
    table = tmp_path / "rows.jsonl"
    (cell, _) = jobs_of()[0]
    append_row(table, make_row(cell))
    assert not find_open_cells([(cell, {})], table)
    assert find_open_cells([(cell, {"lr": 1.0})], table)
    append_row(table, make_row(cell, {"lr": 1.0}))
    assert not find_open_cells([(cell, {"lr": 1.0})], table)
    assert latest_rows(read_rows(table))[cell.key]["settings"] == {"lr": 1.0}
    longer = Cell(cell.dataset, cell.method, cell.variant, cell.seed, Budget(20, 10))
    assert find_open_cells([(longer, {})], table)


def test_two_processes_share_the_cells_and_lose_none(tmp_path):
    table = tmp_path / "rows.jsonl"
    jobs, options = jobs_of(), RunOptions(folder=tmp_path, track=False)
    context = multiprocessing.get_context("fork")
    arguments = (jobs, table, options, None, False, write_slowly)
    processes = [context.Process(target=work, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    rows = read_rows(table)
    assert sorted(map(str, (r["dataset"] + r["method"] + str(r["seed"]) for r in rows))) == sorted(
        c.dataset + c.method + str(c.seed) for c, _ in jobs
    )
    ran = (tmp_path / "order" / "all").read_text().splitlines()
    assert len(ran) == len(set(ran)) == len(jobs)
    # nobody ran ahead by more than the other's cell
    position = {str(cell): index for index, (cell, _) in enumerate(jobs)}
    assert all(abs(position[name] - index) <= 1 for index, name in enumerate(ran))


def test_a_time_limit_begins_no_cell_and_a_failure_does_not_stop_the_others(tmp_path):
    table = tmp_path / "rows.jsonl"
    options = RunOptions(folder=tmp_path, track=False)
    jobs = jobs_of(seeds=(0,))
    work(jobs, table, options, time.time() - 1, False, write_slowly)
    assert not table.exists()

    def fail(cell, options, settings):
        if cell.method == "bc":
            raise RuntimeError("diverged")
        return make_row(cell, settings)

    work(jobs, table, options, None, False, fail)
    rows = read_rows(table)
    assert len(rows) == 6
    assert [r["error"] for r in rows if r["method"] == "bc"] == ["RuntimeError: diverged"] * 2
    assert not find_open_cells(jobs, table)
    assert {c.method for c, _ in find_open_cells(jobs, table, retry=True)} == {"bc"}


@pytest.mark.parametrize("error", [ImportError("no simulator"), OSError("no disk")])
def test_what_the_machine_lacks_is_no_result(error, tmp_path):
    def miss(cell, options, settings):
        raise error

    table = tmp_path / "rows.jsonl"
    with pytest.raises(type(error), match=str(error)):
        work(jobs_of(), table, RunOptions(folder=tmp_path, track=False), None, False, miss)
    assert not table.exists()


def test_every_method_has_a_search_of_the_same_size():
    for kind, methods in [("continuous", METHODS), ("discrete", DISCRETE_METHODS)]:
        assert set(SPACES[kind]) == set(methods) - {"logo-mpc"}
        for method, space in SPACES[kind].items():
            assert len({digest_settings(s) for s in space}) == len(space) == SEARCH_SIZE, method


def test_the_best_setting_is_chosen_once_all_were_tried(tmp_path):
    rows, chosen = tmp_path / "rows.jsonl", tmp_path / "chosen.json"
    jobs = search_jobs("continuous", "held", ["bc", "omar"], 7, BUDGET)
    assert [cell.method for cell, _ in jobs[:4]] == ["bc", "omar", "bc", "omar"]
    for cell, settings in jobs[:-1]:  # omar lacks its last
        index = int(cell.variant.removeprefix("setting-"))
        row = make_row(cell, settings, dataset_hash="h", **{"return": float(-abs(index - 4))})
        if index == 4 and cell.method == "bc":
            row = {**row, "error": "diverged"}
        append_row(rows, row)
    found = choose_settings("continuous", "held", rows, chosen)
    assert list(found) == ["bc"]
    assert found["bc"]["settings"] == SPACES["continuous"]["bc"][3]  # of equals, the first
    assert find_settings("bc", discrete=False, path=chosen) == (found["bc"]["settings"], True)
    assert find_settings("bc", discrete=True, path=chosen) == ({}, False)


@pytest.mark.parametrize(
    ("kind", "task"), [("continuous", "vmas/balance"), ("discrete", "mpe/simple_spread_discrete")]
)
def test_trainers_take_every_setting_that_is_searched(kind, task):
    if task.startswith("mpe"):
        pytest.importorskip("mpe2")
    dataset = collect(make_env(task, num_envs=4, seed=0), None, 400, seed=0)
    models = {cls: cls.from_dataset(dataset, hidden_size=8) for cls in WORLD_MODELS.values()}
    for method, space in SPACES[kind].items():
        for settings in space:
            if method == "mamba":
                assert settings.keys() <= {"lr", "behaviour_coeff"}
                continue
            model = models.get(METHODS_BY_NAME[method].world_model)
            trainer = OfflineTrainer(
                method, dataset, steps=1, world_model=model, progress_bar=False, **settings
            )
            for name, value in settings.get("loss_kwargs", {}).items():
                assert trainer.hyperparameters["loss"][name] == value
