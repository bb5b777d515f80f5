"""Search for good settings: trials chosen by Optuna, of which none is lost.

Run: python -m clipkit.sweep sweep=few_shot approach=mlp                  heads on stored features, in seconds
     python -m clipkit.sweep sweep=few_shot approach=mlp optimizer.lr=1e-3    what is given is not searched
     python -m clipkit.sweep sweep=few_shot approach=mlp name=mine resume=auto    goes on, or helps who is at it
     python -m clipkit.sweep resume=outputs/sweep/mine sweep.trials=200       more of them
"""

from omegaconf import DictConfig

from clipkit.runs.command import command


@command("sweep")
def main(config: DictConfig) -> None:
    """Make the trials that are asked for and not made yet; then table, plots, page and the best configuration."""
    import time
    from pathlib import Path

    import torch
    from hydra.core.hydra_config import HydraConfig

    from clipkit.runs import machine
    from clipkit.runs.progress import as_typed, console
    from clipkit.runs.study import end, host
    from clipkit.runs.study.following import Following
    from clipkit.runs.study.plan import read_plan
    from clipkit.runs.study.storage import open_study

    started = time.time()
    torch.set_num_threads(1)  # nothing may have used several before processes are forked
    overrides, choices = list(HydraConfig.get().overrides.task), HydraConfig.get().runtime.choices
    machine.check_accelerator(config.trainer)
    plan = read_plan(config, overrides)
    folder = Path(config.run_dir)
    stopping = host.Stopping(folder)
    run = host.open_sweep(config, overrides, config.sweep.trials)
    title = f"sweep {choices['sweep']} · {' · '.join(choices[g] for g in ('approach', 'backbone', 'data'))}"
    console.print(f"[bold]{title}[/bold]  seed {config.seed}  →  {as_typed(folder)}", soft_wrap=True)
    processes = host.processes_for(plan, config)
    console.print(f"  {host.described(plan, config, processes)}", soft_wrap=True)
    stopping.watch()
    if run is None or run.finished:
        if run is None:
            host.make_trials(plan, config, processes=processes, stopping=stopping, following=None)
        study = open_study(folder, plan, config.sweep, seed=config.seed)
        rows = end.table_of(plan, study, study.trials())
    else:
        with run.recording(), Following(config, plan) as following:
            host.make_trials(plan, config, processes=processes, stopping=stopping, following=following)
            study = open_study(folder, plan, config.sweep, seed=config.seed)
            run.note_cost()
            run.note(trials=study.counts()[0])
            rows, figures = end.leave(run, plan, study, config, title=title)
            following.close("finished", figures, rows)
            run.finish()
    end.show(plan, study, rows, title=title, took=f"{time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
