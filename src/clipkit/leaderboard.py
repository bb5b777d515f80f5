"""Every run below a folder in one table: the best first, seeds averaged, and what has failed named.

Run: python -m clipkit.leaderboard root=outputs
     python -m clipkit.leaderboard metric=test/seen/i2t_recall@1 where.data=emoji 'where.approach=[mlp,aamp_mlp]'
     python -m clipkit.leaderboard group=false 'columns=[test/*]' 'where.folder=train/multirun/*'
"""

from importlib import import_module

from omegaconf import DictConfig

from clipkit.runs.command import command


@command("leaderboard")
def main(config: DictConfig) -> None:
    """Gather, rank, and write Markdown, CSV and a page."""
    from clipkit.runs.leaderboard.rows import gather

    found = gather(config.root, meanwhile=lambda: import_module("clipkit.runs.record"))  # seconds, for torch

    from hydra.core.hydra_config import HydraConfig

    from clipkit.runs.leaderboard.board import make_board
    from clipkit.runs.leaderboard.page import write_board_page
    from clipkit.runs.leaderboard.screen import say_board
    from clipkit.runs.leaderboard.tables import write_tables
    from clipkit.runs.record import Run

    run = Run(config, list(HydraConfig.get().overrides.task))
    with run.recording():
        board = make_board(config, found)
        with write_tables(run.folder, board, grouped=config.group):
            run.note_cost()
            write_board_page(run, config, board)
        run.finish(runs=len(board.runs), recipes=len(board.groups), without=len(board.without))
        say_board(run, board, grouped=config.group, top=config.top)


if __name__ == "__main__":
    main()
