"""Which value of an optimiser, a schedule or a batch size wins in which stage."""

from typing import Any

from clipkit.runs.build import resolve_stages
from clipkit.runs.compose import compose_config
from clipkit.runs.validate import check_command_line


def resolved(*overrides: str) -> Any:
    given = check_command_line("train", overrides)
    config = compose_config("train", given)
    resolve_stages(config, given)
    return config.approach.stages


def test_a_stage_keeps_its_own_values_and_takes_the_rest_from_the_group() -> None:
    stages = resolved()
    assert stages.heads.optimizer.lr == 3e-3
    assert stages.towers.optimizer.lr == 5e-4
    assert list(stages.towers.optimizer.factory.betas) == [0.9, 0.98]


def test_a_group_value_on_the_command_line_replaces_it_in_every_stage() -> None:
    stages = resolved("optimizer.lr=0.01", "data.batch_size=32", "scheduler.warmup=0.4")
    for stage in (stages.heads, stages.towers):
        assert stage.optimizer.lr == 0.01
        assert stage.batch_size == 32
        assert stage.scheduler.warmup == 0.4


def test_a_stage_value_on_the_command_line_has_the_last_word() -> None:
    stages = resolved("optimizer.lr=0.01", "approach.stages.towers.optimizer.lr=0.5", "data.batch_size=32",
                      "approach.stages.heads.batch_size=8")  # fmt: skip
    assert (stages.heads.optimizer.lr, stages.towers.optimizer.lr) == (0.01, 0.5)
    assert (stages.heads.batch_size, stages.towers.batch_size) == (8, 32)


def test_another_optimizer_replaces_the_stages_values_too() -> None:
    stages = resolved("optimizer=sgd", "approach.stages.heads.optimizer.lr=1.0")
    assert stages.heads.optimizer.factory._target_ == "torch.optim.SGD"
    assert (stages.heads.optimizer.lr, stages.towers.optimizer.lr) == (1.0, 0.1)


def test_debug_fast_makes_one_epoch_of_every_stage() -> None:
    stages = resolved("debug=fast")
    assert (stages.heads.epochs, stages.towers.epochs) == (1, 1)
