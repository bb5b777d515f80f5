"""Trials of heads on stored features: in this process, a fraction of a second each.

Used by: clipkit.sweep

A trial is what `clipkit.train` makes of the same command line, to the bit: its folder says which. What is shared by all
trials (towers, data, stored features, texts) is made once.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from optuna import TrialPruned

from clipkit.data.datamodule import PairData
from clipkit.data.decoding import available_cores, refuse_if_broken
from clipkit.errors import UserError
from clipkit.evaluation import EVALUATORS, evaluate
from clipkit.features import FeatureStore
from clipkit.features.frozen import FrozenFeatures
from clipkit.models.dual_encoder import DualEncoder
from clipkit.runs import build, machine
from clipkit.runs.progress import ProgressReporter
from clipkit.runs.provenance import provenance
from clipkit.runs.record import how_begun, write_json
from clipkit.runs.results import choose_evaluators, choose_split
from clipkit.runs.validation import validation_scores

__all__ = ["ALONE", "Heads"]

ALONE = "approach.search={seeds:1}"  # the stage is trained on stored features, outside of Lightning
EVALUATED = ("classify",)  # where the command line names no evaluators


@dataclass
class _Shared:
    """What trials with the same towers and data have in common."""

    encoder: DualEncoder
    data: PairData
    features: FrozenFeatures
    about: dict[str, Any]


class Heads:
    """Makes trials; holds what they share.

    Args:
        config: of the sweep.
    """

    def __init__(self, config: DictConfig) -> None:
        self.device = machine.choose_device(config.trainer.accelerator)
        self._shared: dict[str, _Shared] = {}

    def run(
        self,
        config: DictConfig,
        overrides: Sequence[str],
        folder: Path,
        *,
        choices: Mapping[str, Any],
        trial: Mapping[str, Any],
        on_epoch: Callable[[int, dict[str, float]], None],
    ) -> dict[str, float]:
        """Train, validate and evaluate; leave `config.yaml`, `run.json`, `metrics.json` and tables in the folder.

        Args:
            config: of `clipkit.train`, its stages resolved; changed.
            overrides: the command line that makes it.
            folder: of the trial.
            choices: the options of the configuration groups.
            trial: what `run.json` is to say of the trial.
            on_epoch: told of each epoch's validation; what it raises ends the trial, and is written down.

        Returns:
            The metrics.
        """
        started = time.time()
        with open_dict(config):
            config.run_dir = str(folder)
        plain = OmegaConf.to_container(config, resolve=True)
        assert isinstance(plain, dict)
        record = {"status": "finished", **how_begun("train", overrides, plain, chosen=choices)}
        metrics: dict[str, float] = {}
        tables: dict[str, Any] = {}
        try:
            shared = self.shared(config, plain)
            record |= shared.about
            metrics, tables, about = self._answer(config, shared, on_epoch)
            record |= about
        except TrialPruned:
            record |= {"status": "pruned"}
            raise
        except UserError as error:
            record |= {"status": "failed", "error": str(error)}
            raise
        except Exception as error:
            record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
            raise
        except BaseException:
            record |= {"status": "interrupted"}
            raise
        finally:
            record |= {"trial": dict(trial), "wall_s": round(time.time() - started, 3)}
            _leave(folder, plain, record, metrics, tables)
        return metrics

    def _answer(
        self, config: DictConfig, shared: _Shared, on_epoch: Callable[[int, dict[str, float]], None]
    ) -> tuple[dict[str, float], dict[str, Any], dict[str, Any]]:
        machine.set_seed(config.seed)
        encoder, data, features = shared.encoder, shared.data, shared.features
        encoder.frozen_dtype = machine.frozen_dtype(config.trainer.frozen_precision)
        approach, _ = build.build_approach(config, encoder)
        approach.notes(data)
        approach.to(self.device)
        approach.on_epoch = on_epoch
        approach.prepare(features)
        encoder.frozen_dtype = None
        approach.finish(features)
        model = approach.model(data.templates)
        names, _ = choose_evaluators(config.evaluators or EVALUATED, after_training=True)
        asked = [EVALUATORS[name]() for name in names]
        result = evaluate(model, data, asked, split=choose_split(data), stored=features, draws=False)
        scores = validation_scores(approach.validation, model, data, stored=features)
        return {**scores, **result.metrics}, {**result.tables, **approach.tables}, approach.about

    def shared(self, config: DictConfig, plain: Mapping[Any, Any]) -> _Shared:
        """Towers, data and features of a configuration, made when first asked for."""
        data_alone = {key: value for key, value in plain["data"].items() if key != "batch_size"}  # of the stages
        deciding = {"backbone": plain["backbone"], "data": data_alone, "seed": plain["seed"]}
        key = json.dumps(deciding, sort_keys=True, default=str)
        if key not in self._shared:
            encoder = build.build_encoder(config)
            encoder.to(self.device)
            data = build.build_data(config, encoder)
            progress = ProgressReporter()
            broken, total = data.find_broken(packed=None, on_progress=progress)
            refuse_if_broken(broken, total, data.max_broken, "clipkit.describe has it")
            store = FeatureStore(f"{config.cache_dir}/features")
            features = FrozenFeatures(encoder, data, store, on_progress=progress, keep=True)
            self._encode(config, features)
            self._shared[key] = _Shared(encoder, data, features, {"data": data.said, **provenance()})
        return self._shared[key]

    @staticmethod
    def _encode(config: DictConfig, features: FrozenFeatures) -> None:
        """Fill the store, by all cores: other processes of the sweep wait for it, and trials have one core each."""
        stages = [stage for stage in (config.approach.get("stages") or {}).values() if stage.epochs > 0]
        views = max([stage.views for stage in stages], default=1)
        threads = torch.get_num_threads()
        torch.set_num_threads(available_cores())
        features.encoder.frozen_dtype = machine.frozen_dtype(config.trainer.frozen_precision)
        features.image("train", views=views)
        torch.set_num_threads(threads)


def _leave(
    folder: Path, config: dict[Any, Any], record: dict[str, Any], metrics: dict[str, float], tables: dict[str, Any]
) -> None:
    """`run.json` comes last: a folder that has it is complete."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = yaml.dump(config, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False)
        (folder / "config.yaml").write_text(text)
        if metrics:
            write_json(folder / "metrics.json", dict(sorted(metrics.items())))
        for name, table in tables.items():
            (folder / "tables").mkdir(exist_ok=True)
            table.to_csv(folder / "tables" / f"{name}.csv", index=False)
        write_json(folder / "run.json", record)
    except OSError as error:
        raise UserError(f"the trial could not be written to {folder}: {error}") from error
