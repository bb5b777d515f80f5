"""Notice pictures of nothing that training showed, group them, and make new classes of them.

Run: python -m clipkit.discover action=evaluate data=emoji                              how well it works
     python -m clipkit.discover action=fit data=folder data.root=DIR name=known        what is known
     python -m clipkit.discover action=score fitted=outputs/discover/known images=DIR store=FOUND
     python -m clipkit.discover action=cluster store=FOUND fitted=outputs/discover/known  what they are
     python -m clipkit.discover action=accept store=FOUND cluster=0 label="a kind" fitted=outputs/discover/known
"""

from omegaconf import DictConfig

from clipkit.runs.command import command


@command("discover")
def main(config: DictConfig) -> None:
    """Do what `action` says, in a run's folder."""
    from hydra.core.hydra_config import HydraConfig

    from clipkit.runs import machine
    from clipkit.runs.discover_evaluate import evaluate_discovery
    from clipkit.runs.discover_fit import fit_detectors
    from clipkit.runs.discover_pictures import accept_cluster, cluster_pictures, score_pictures
    from clipkit.runs.record import Run

    actions = {
        "evaluate": evaluate_discovery,
        "fit": fit_detectors,
        "score": score_pictures,
        "cluster": cluster_pictures,
        "accept": accept_cluster,
    }
    machine.prepare_machine(None)
    run = Run(config, list(HydraConfig.get().overrides.task))
    with run.recording():
        machine.set_seed(config.seed)
        actions[config.action](config, run)


if __name__ == "__main__":
    main()
