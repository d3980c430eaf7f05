"""ImageNet weights: read from the hub folder, never run as code, and missed clearly."""

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision

from bench.encoders import ENCODERS, build_encoder
from bench.errors import BadInput, TrialFailed, UnknownName
from bench.registry import build, configure, find_method
from bench.weights import imagenet_weights, load_weights, weights_file


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub folder and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)

    def no_network(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.usefixtures("hub")
def test_an_encoder_gets_the_weights_of_its_file():
    torch.manual_seed(5)
    source = torchvision.models.resnet18(weights=None)
    source.bn1.running_mean.uniform_()
    torch.save(source.state_dict(), weights_file(imagenet_weights("resnet18")))
    method = build("imagenet", {}, build_encoder("resnet18", 0))
    source.fc = torch.nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    encoder = method.encoder
    torch.testing.assert_close(encoder.eval()(images), source.eval()((images - encoder.mean) / encoder.std))


def test_files_lie_under_torchvisions_names_and_hashes(hub):
    assert weights_file(imagenet_weights("resnet18")) == hub / "resnet18-f37072fd.pth"
    assert weights_file(imagenet_weights("resnet50", "IMAGENET1K_V2")) == hub / "resnet50-11ad3fa6.pth"
    with pytest.raises(UnknownName, match="did you mean 'IMAGENET1K_V1'"):
        imagenet_weights("resnet18", "IMAGENET1K_V2")


@pytest.mark.parametrize("download", [True, False])
def test_weights_that_cannot_be_had_are_asked_for_by_name_and_folder(hub, download):
    with pytest.raises(TrialFailed) as error:
        load_weights(imagenet_weights("resnet34"), download=download)
    for part in ("resnet34-b627a593.pth", str(hub), "https://download.pytorch.org", "TORCH_HOME"):
        assert part in str(error.value).replace("ResNet34", "resnet34")
    assert ("no route to host" in str(error.value)) == download


@pytest.mark.usefixtures("hub")
def test_a_download_is_compared_with_its_hash(monkeypatch):
    asked = {}

    def fetch(url: str, file: str, hash_prefix: str | None, **_: object) -> None:
        asked[url] = hash_prefix
        torch.save({"a": torch.ones(1)}, file)

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    assert load_weights(imagenet_weights("resnet18"), download=True)["a"] == 1
    assert list(asked.values()) == ["f37072fd"]


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code was run')",)


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize("content", ["code", "torn"])
def test_a_file_that_is_no_weights_is_refused_and_runs_nothing(content):
    file = weights_file(imagenet_weights("resnet18"))
    if content == "code":
        torch.save({"conv1.weight": Harmful()}, file)
    else:
        file.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(TrialFailed, match="cannot be read; delete it"):
        load_weights(imagenet_weights("resnet18"), download=True)


@pytest.mark.parametrize("backbone", sorted(ENCODERS))
def test_encoders_without_weights_are_refused_before_anything_runs(backbone):
    check, config = find_method("imagenet").check, configure("imagenet", {}, "test")
    if backbone.startswith("resnet"):
        check(config, backbone)
    else:
        with pytest.raises(BadInput, match=r"pretrain\.backbone|own encoder"):
            check(config, backbone)


def test_a_version_that_an_encoder_lacks_is_refused():
    second = configure("imagenet", {"weights": "IMAGENET1K_V2"}, "test")
    find_method("imagenet").check(second, "resnet50")
    with pytest.raises(UnknownName, match="IMAGENET1K_V1"):
        find_method("imagenet").check(second, "resnet18")
