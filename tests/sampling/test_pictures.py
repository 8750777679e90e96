"""sample_images and the names of classes."""

import numpy as np
import pytest
import torch

from tread_ssm import from_pretrained, sample_images
from tread_ssm.config.run import SampleConfig
from tread_ssm.data import PixelValues
from tread_ssm.diffusion import Flow
from tread_ssm.errors import ConfigError
from tread_ssm.models import DiTConfig
from tread_ssm.pretrained import Description, export
from tread_ssm.sampling.classes import class_number
from tread_ssm.sampling.generate import generate_all
from tread_ssm.sampling.image_grid import decoder
from tread_ssm.sampling.recipe import Recipe


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Description]:
    torch.manual_seed(0)
    config = DiTConfig(image_size=8, channels=3, n_classes=3, patch=2, dim=32, depth=2, heads=2)
    model = config.build()
    with torch.no_grad():  # published DiTs start at zero, which looks at no label
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    folder = tmp_path_factory.mktemp("run")
    sample = SampleConfig(steps=3, guidance=1.5)
    description = Description(5, config, Flow(), ("cat", "dog", "2"), PixelValues(), (), sample)
    export(folder, model.state_dict(), description)
    return from_pretrained(folder)


def test_images_are_those_of_the_runs_recipe(run: tuple[torch.nn.Module, Description]) -> None:
    model, described = run
    images = sample_images(model, described, ["dog", 0], n=2, seed=7)
    assert [image.size for image in images] == [(8, 8)] * 4 and images[0].mode == "RGB"
    expected = generate_all(
        model,
        described,
        Recipe(steps=3, guidance=1.5),
        torch.tensor([1, 1, 0, 0]),
        seed=7,
        decode=decoder(described.values, None, "cpu"),
    )
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), expected)
    again = sample_images(model, described, ["dog", 0], n=2, seed=7)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(images, again, strict=True))


def test_guidance_steps_and_classes_matter(run: tuple[torch.nn.Module, Description]) -> None:
    model, described = run
    ways = [
        sample_images(model, described, "cat"),
        sample_images(model, described, "dog"),
        sample_images(model, described, "cat", guidance=6),
        sample_images(model, described, "cat", steps=9),
        sample_images(model, described, "cat", seed=1),
    ]
    assert len({images[0].tobytes() for images in ways}) == len(ways)
    assert len(sample_images(model, described)) == 3


def test_classes_by_name_before_number(run: tuple[torch.nn.Module, Description]) -> None:
    known = run[1].class_names
    assert [class_number(c, known) for c in ("dog", "1", 0, "2", 2)] == [1, 1, 0, 2, 2]
    for wrong in ("Dog", "bird", "7", 7):
        with pytest.raises(ConfigError):
            class_number(wrong, known)


def test_imagenets_words() -> None:
    known = ["n01440764", "n01443537", "n02119789"]
    assert class_number("goldfish", known) == class_number("Carassius auratus", known) == 1
    assert class_number("Kit Fox", known) == class_number("n02119789", known) == 2
    with pytest.raises(ConfigError, match="'zebra' is not a class"):
        class_number("zebra", known)
