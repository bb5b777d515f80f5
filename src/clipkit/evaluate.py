"""Evaluate a model on a data set: the evaluators that training itself uses, and more.

Run: python -m clipkit.evaluate model=outputs/train/my_run data=emoji
     python -m clipkit.evaluate model=emoji_clip data=folder data.root=/path/to/pictures
     python -m clipkit.evaluate model=[outputs/train/my_run,emoji_clip] data=emoji
     python -m clipkit.evaluate model=outputs/train/my_run evaluators=[wise_ft] retention_data=synthetic
     python -m clipkit.evaluate model=outputs/train/my_run evaluators=[robustness]
"""

from omegaconf import DictConfig

from clipkit.runs.command import command


@command("evaluate")
def main(config: DictConfig) -> None:
    """Run one evaluation, or one for each of several models."""
    from clipkit.runs.evaluating import evaluate_models

    evaluate_models(config)


if __name__ == "__main__":
    main()
