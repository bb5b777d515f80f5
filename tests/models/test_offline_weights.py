"""The pretrained towers that come as packages are the models they claim to be."""

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_sample_image

from clipkit.errors import UserError
from clipkit.models.image import TimmImageTower
from clipkit.models.offline_weights import offline_image_weights, offline_text_folder
from clipkit.models.preprocess import ImagePreprocess
from clipkit.models.text import TransformersTextTower

PALACE = 698  # ImageNet's class
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
PARAPHRASES = [  # a sentence, another way to say it, another sentence of the same form
    ("A man is playing a guitar.", "Someone plays the guitar.", "A man is repairing a truck."),
    ("The cat sleeps on the sofa.", "A kitten is napping on the couch.", "The bank closes on the weekend."),
    ("It is raining heavily today.", "There is a downpour outside.", "It is cheap to rent today."),
    ("How do I reset my password?", "I forgot my login and need a new one.", "How do I bake sourdough bread?"),
    ("The stock market fell sharply.", "Share prices dropped a lot.", "The tree in the park fell over."),
]


def test_efficientnet_lite0_from_its_package_sees_a_palace() -> None:
    from PIL import Image

    model = timm.create_model("tf_efficientnet_lite0").eval()
    weights = offline_image_weights("tf_efficientnet_lite0", model.state_dict())
    assert weights is not None
    model.load_state_dict(weights)
    picture = Image.fromarray(np.asarray(load_sample_image("china.jpg")))
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1) / 127.5 - 1
    ours = ImagePreprocess(224)(picture) / 127.5 - 1
    with torch.no_grad():
        probabilities = model(torch.stack([pixels, ours])).softmax(1)
    assert probabilities.argmax(1).tolist() == [PALACE, PALACE]
    assert probabilities[:, PALACE].min() > 0.3


def test_the_text_package_knows_that_a_kitten_is_a_cat() -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = offline_text_folder("sentence-transformers/all-MiniLM-L6-v2")
    assert folder is not None
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def embed(text: str) -> torch.Tensor:
        return model(**tokenizer(text, return_tensors="pt")).last_hidden_state.mean(1)[0]

    with torch.no_grad():
        cat, kitten, tax = (embed(text) for text in ("a cat", "a kitten", "a tax return"))
    similarity = torch.cosine_similarity
    assert similarity(cat, kitten, dim=0) > 0.6 > 0.3 > similarity(cat, tax, dim=0)


@pytest.mark.parametrize("name", ["resnet18", "no_such_model"])
def test_models_that_no_package_holds_have_no_offline_weights(name: str) -> None:
    assert offline_image_weights(name, {}) is None
    assert offline_text_folder(name) is None


def test_weights_that_do_not_fit_the_model_are_refused() -> None:
    with pytest.raises(UserError, match="does not fit"):
        offline_image_weights("tf_efficientnet_lite0", timm.create_model("test_efficientnet").state_dict())


@torch.no_grad()
def test_the_image_tower_with_the_packages_classifier_sees_a_palace() -> None:
    from PIL import Image

    whole = timm.create_model("tf_efficientnet_lite0").eval()
    weights = offline_image_weights("tf_efficientnet_lite0", whole.state_dict())
    assert weights is not None
    picture = Image.fromarray(np.asarray(load_sample_image("china.jpg")))
    for folded in (False, True):
        tower = TimmImageTower("tf_efficientnet_lite0", pretrained=True, fold_batchnorm=folded).eval()
        feature = tower(tower.preprocess(picture).unsqueeze(0))
        logits = feature @ weights["classifier.weight"].T + weights["classifier.bias"]
        assert logits.argmax().item() == PALACE
        assert logits.softmax(1)[0, PALACE] > 0.3


@pytest.fixture(scope="module")
def minilm() -> TransformersTextTower:
    return TransformersTextTower(MINILM, max_length=64).eval()


@torch.no_grad()
def test_the_text_tower_is_the_mean_of_what_transformers_computes(minilm: TransformersTextTower) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = offline_text_folder(MINILM)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    sentences = [sentence for group in PARAPHRASES for sentence in group]
    found = minilm(minilm.tokenize(sentences))
    for sentence, feature in zip(sentences, found, strict=True):
        expected = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state.mean(1)[0]
        torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("sentence", "paraphrase", "unrelated"), PARAPHRASES)
def test_a_paraphrase_is_nearer_than_an_unrelated_sentence(
    minilm: TransformersTextTower, sentence: str, paraphrase: str, unrelated: str
) -> None:
    anchor, near, far = minilm(minilm.tokenize([sentence, paraphrase, unrelated]))
    assert torch.cosine_similarity(anchor, near, dim=0) > torch.cosine_similarity(anchor, far, dim=0) + 0.2
