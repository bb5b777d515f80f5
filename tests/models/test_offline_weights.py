"""The pretrained towers that come as packages are the models they claim to be."""

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_sample_image

from clipkit.errors import UserError
from clipkit.models.offline_weights import offline_image_weights, offline_text_folder
from clipkit.models.preprocess import ImagePreprocess

PALACE = 698  # ImageNet's class


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
