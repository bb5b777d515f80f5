"""The tokenizer of a text tower from scratch: trained on the training captions before the tower is built."""

from omegaconf import DictConfig, OmegaConf, open_dict

from clipkit.models.bpe import corpus_tokenizer
from clipkit.runs.build import training_captions

__all__ = ["settle_tokenizer"]

CORPUS = "corpus"
FROM_SCRATCH = "clipkit.models.text_transformer.CausalTextTower"


def settle_tokenizer(config: DictConfig) -> list[str]:
    """Train the tokenizer that `backbone.text` asks for and name its folder there, in place; says what was done.

    `backbone.text.tokenizer=corpus` asks for one, and so does clipkit's own text transformer without a tokenizer. The
    folder is found again for the same captions.
    """
    text = OmegaConf.select(config, "backbone.text")
    if text is None:
        return []
    wanted = text.get("tokenizer")
    if wanted != CORPUS and not (wanted is None and text.get("_target_") == FROM_SCRATCH):
        return []
    captions = training_captions(config)
    folder = corpus_tokenizer(captions, cache_dir=config.cache_dir, max_length=text.max_length)
    with open_dict(config):
        text.tokenizer = str(folder)
    return [f"tokenizer trained on {len(captions):,} training captions, kept in {folder}"]
