"""Students: one base tester, subclassed in a few lines per architecture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polyp_difom.cache.errors import UsageError
from polyp_difom.pipeline.students import protocol
from polyp_difom.pipeline.students.protocol import Student, build_student, doubled, parameter_count


class StudentTester:
    """What every student owes. Subclasses give its name at test width, and the exact size of the published width."""

    name: str
    published: str
    parameters: int
    parameters_with_latents: int
    sides: int = 0
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @pytest.fixture(params=[False, True], ids=["plain", "latents"])
    def student(self, request: pytest.FixtureRequest) -> Student:
        return build_student(self.name, latents=request.param)

    def test_logits_have_the_frame_size(self, student: Student) -> None:
        for side in (2 * student.stride, 6 * student.stride):
            assert student(torch.rand(2, 3, side, side)).shape == (2, 1, side, side)

    def test_taps_are_what_they_declare(self, student: Student) -> None:
        for side in (2 * student.stride, 6 * student.stride):
            maps = student.eval().features(torch.rand(2, 3, side, side))[1]
            assert set(maps) == {tap.name for tap in student.taps}
            for tap in student.taps:
                assert maps[tap.name].shape == (2, tap.channels, side // tap.stride, side // tap.stride)

    def test_side_outputs_are_logits_that_come_in_training_alone(self, student: Student) -> None:
        side = 2 * student.stride
        maps = student.train().features(torch.rand(2, 3, side, side))[1]
        assert len(set(student.sides)) == len(student.sides) == self.sides
        assert set(maps) == {tap.name for tap in student.taps} | set(student.sides)
        for name in student.sides:
            cells = maps[name].shape[-1]
            assert maps[name].shape == (2, 1, cells, cells)
            assert side % cells == 0

    def test_taps_follow_the_frame_and_not_its_neighbours(self, student: Student) -> None:
        student.eval()
        frames = torch.rand(2, 3, 64, 64) * torch.tensor([1.0, 0.1])[:, None, None, None]
        alone, together = student.features(frames[:1])[1], student.features(frames)[1]
        for name, maps in alone.items():
            torch.testing.assert_close(maps, together[name][:1], rtol=1e-3, atol=1e-4)
            assert not torch.allclose(together[name][:1], together[name][1:], rtol=1e-3, atol=1e-4)

    def test_there_is_a_tap_at_the_bottleneck_and_one_on_each_side(self, student: Student) -> None:
        assert {"encoder", "bottleneck", "decoder"} <= {tap.role for tap in student.taps}

    def test_a_side_that_does_not_fit_is_refused_with_one_that_does(self, student: Student) -> None:
        side = 2 * student.stride + 1
        for shape, fits in (((side, side), 3), ((side, 2 * student.stride), 3), ((2 * student.stride, side), 2)):
            with pytest.raises(UsageError, match="does not fit") as caught:
                student(torch.rand(1, 3, *shape))
            assert caught.value.details["wanted"] == f"multiples of {student.stride}, for instance {fits * student.stride}"

    def test_the_same_seed_gives_the_same_weights(self) -> None:
        states = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            states.append(build_student(self.name).state_dict())
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])

    def test_logits_and_side_outputs_reach_every_parameter(self, student: Student) -> None:
        logits, maps = student.features(torch.rand(2, 3, 64, 64))
        torch.stack([logits.sum(), *(maps[side].sum() for side in student.sides)]).sum().backward()
        without = [name for name, parameter in student.named_parameters() if parameter.grad is None]
        assert without == []

    def test_every_output_teaches_the_encoder(self, student: Student) -> None:
        logits, maps = student.features(torch.rand(2, 3, 64, 64))
        first = next(student.encoder.parameters())
        for output in (logits, *(maps[side] for side in student.sides)):
            (gradient,) = torch.autograd.grad(output.square().sum(), first, retain_graph=True)
            assert gradient.abs().sum() > 0

    def test_the_normalisation_is_part_of_the_network_but_not_of_a_checkpoint(self, student: Student) -> None:
        assert not {"mean", "std"} & set(student.state_dict())
        student.eval()
        frames = torch.rand(1, 3, 64, 64)
        inputs = (frames - torch.tensor(self.mean)[:, None, None]) / torch.tensor(self.std)[:, None, None]
        torch.testing.assert_close(student(frames), student.segment(inputs)[0])

    def test_the_encoder_holds_all_that_comes_before_the_bottleneck(self, student: Student) -> None:
        student.eval()
        frames = torch.rand(1, 3, 64, 64)
        before = {name: maps.clone() for name, maps in student.features(frames)[1].items()}
        with torch.no_grad():
            for parameter in student.encoder.parameters():
                parameter.mul_(1.5)
        after = student.features(frames)[1]
        inner = [tap.name for tap in student.taps if tap.role in ("encoder", "bottleneck")]
        assert all(not torch.allclose(before[name], after[name]) for name in inner)
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                if not name.startswith("encoder."):
                    parameter.mul_(1.5)
        again = student.features(frames)[1]
        assert all(torch.equal(after[name], again[name]) for name in inner)

    def test_the_parameter_count_is_the_known_one(self) -> None:
        with torch.device("meta"):
            counts = [parameter_count(build_student(self.published, latents)) for latents in (False, True)]
        assert counts == [self.parameters, self.parameters_with_latents]

    def test_latents_come_only_on_request_at_the_stride_of_the_encoders_last_map(self) -> None:
        for latents in (False, True):
            taps = {tap.name: tap for tap in build_student(self.name, latents).taps if tap.role in ("latent", "bottleneck")}
            assert list(taps) == ["bottleneck", *(["latent1", "latent2"] if latents else [])]
            assert {tap.stride for tap in taps.values()} == {taps["bottleneck"].stride}
            assert all(tap.channels == 256 for name, tap in taps.items() if name != "bottleneck")

    def test_the_encoders_last_map_reaches_the_logits_through_the_latents_alone(self) -> None:
        student = build_student(self.name, latents=True).eval()
        frames = torch.rand(1, 3, 64, 64)
        logits, maps = student.features(frames)
        torch.testing.assert_close(maps["latent1"], student.latents.first(maps["bottleneck"]))
        torch.testing.assert_close(maps["latent2"], student.latents.second(maps["latent1"]))
        for source in ("bottleneck", "latent1", "latent2"):
            (gradient,) = torch.autograd.grad(logits.square().sum(), maps[source], retain_graph=True)
            assert gradient.abs().sum() > 0
        torch.nn.init.zeros_(student.latents.first.weight)
        logits, maps = student.features(frames)
        (gradient,) = torch.autograd.grad(logits.square().sum(), maps["bottleneck"])
        assert gradient.abs().sum() == 0

    def test_an_exported_network_answers_as_torch_does_for_other_batches_than_the_traced_one(self, tmp_path: Path) -> None:
        runtime = pytest.importorskip("onnxruntime")
        pytest.importorskip("onnx")
        student = build_student(self.name).eval()
        frames = torch.rand(3, 3, 2 * student.stride, 2 * student.stride)
        torch.onnx.export(
            student, (frames[:1],), str(tmp_path / "s.onnx"), dynamo=False, opset_version=17, input_names=["frames"],
            output_names=["logits"], dynamic_axes={"frames": {0: "b"}, "logits": {0: "b"}},
        )  # fmt: skip
        wanted = student(frames).detach()
        (said,) = runtime.InferenceSession(tmp_path / "s.onnx").run(None, {"frames": frames.numpy()})
        torch.testing.assert_close(torch.from_numpy(said), wanted, rtol=1e-4, atol=1e-4)
        with torch.no_grad():
            traced = torch.jit.trace(student, frames[:1])
        torch.testing.assert_close(traced(frames), wanted, rtol=1e-4, atol=1e-4)


class TestUNet(StudentTester):
    name = "unet:4"
    published = "unet"
    parameters = 7_849_601
    parameters_with_latents = 8_571_009

    def test_the_default_is_32_wide(self) -> None:
        assert parameter_count(build_student("unet")) == parameter_count(build_student("unet:32"))

    @pytest.mark.parametrize("width", ["0", "3", "129", "-8", "8.5", "wide", "²"])
    def test_an_unknown_width_is_refused(self, width: str) -> None:
        with pytest.raises(UsageError, match="unknown U-Net width"):
            build_student(f"unet:{width}")


class TestUNetPlusPlus(StudentTester):
    name = "unetpp:4"
    published = "unetpp"
    parameters = 9_159_681  # published: 9.16 M
    parameters_with_latents = 9_881_089

    def test_an_unknown_width_is_refused(self) -> None:
        for width in ("3", "3-deep", "16-", "16deep", "-deep", "deep-16", "deeper"):
            with pytest.raises(UsageError, match=r"unknown U-Net\+\+ width"):
                build_student(f"unetpp:{width}")


class TestUNetPlusPlusDeep(StudentTester):
    name = "unetpp:4-deep"
    published = "unetpp:deep"
    sides = 3
    parameters = 9_159_681 + 3 * 33
    parameters_with_latents = 9_881_089 + 3 * 33

    def test_supervision_changes_what_is_learned_and_not_what_is_computed(self, student: Student) -> None:
        plain = build_student("unetpp:4", latents=len(student.taps) > 3).eval()
        weights = student.state_dict()
        assert set(weights) - set(plain.state_dict()) == {
            f"side_heads.{i}.{leaf}" for i in range(3) for leaf in ("weight", "bias")
        }
        plain.load_state_dict(weights, strict=False)
        frames = torch.rand(1, 3, 64, 64)
        assert torch.equal(student.eval()(frames), plain(frames))


class TestLight(StudentTester):
    name = published = "light"
    parameters = 3_030_593
    parameters_with_latents = 3_715_137
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3


class TestEmcad(StudentTester):
    name = "emcad:b0"
    published = "emcad"
    sides = 3
    parameters = 24_849_856 + 1_914_837  # published: 26.76 M, of which 1.91 M the decoder
    parameters_with_latents = parameters + 256 * 513 + 256 * (9 * 256 + 1) + 512 * 513  # L1, L2, and back to 512 channels


class TestPraNet(StudentTester):
    name = published = "pranet"
    sides = 3
    parameters = 32_547_319 - 2_049_000  # published: 32.55 M, with the encoder's unused classifier of 1,000 ImageNet classes
    parameters_with_latents = parameters + 256 * 2049 + 256 * (9 * 256 + 1) + 2048 * 513


class TestSmp(StudentTester):
    name = published = "smp:FPN/tu-mobilenetv3_small_050"
    parameters = 1_983_265
    parameters_with_latents = parameters + 256 * 289 + 256 * (9 * 256 + 1) + 288 * 513

    @pytest.fixture(autouse=True)
    def _package(self) -> None:
        pytest.importorskip("segmentation_models_pytorch")


def test_an_unknown_student_is_answered_with_close_matches() -> None:
    with pytest.raises(UsageError, match="unknown student 'unett'") as caught:
        build_student("unett")
    assert "unet" in str(caught.value.details["next"])


@pytest.mark.parametrize("name", ["unet:4", "unetpp:4"])
def test_a_student_without_pretrained_weights_has_nothing_to_load(name: str) -> None:
    states = []
    for pretrained in (False, True):
        torch.manual_seed(0)
        student = build_student(name, pretrained=pretrained)
        states.append(student.state_dict())
    assert student.pretraining is None
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize("name", ["pranet:small", "light:2", "light:lite3", "emcad:b9", "emcad:2"])
def test_a_variant_that_a_student_has_not_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="has no variant") as caught:
        build_student(name)
    assert f"--student {name.partition(':')[0]}" in str(caught.value.details["next"])


@pytest.mark.parametrize("name", ["light:lite1", "light:lite2"])
@pytest.mark.parametrize("latents", [False, True])
def test_light_on_a_larger_encoder_has_the_same_taps(name: str, latents: bool) -> None:
    student, small = build_student(name, latents).eval(), build_student("light", latents)
    maps = student.features(torch.rand(1, 3, 64, 64))[1]
    assert [(tap.name, tap.stride, tap.role) for tap in student.taps] == [
        (tap.name, tap.stride, tap.role) for tap in small.taps
    ]
    for tap in student.taps:
        assert maps[tap.name].shape == (1, tap.channels, 64 // tap.stride, 64 // tap.stride)
    torch.testing.assert_close(student.mean, small.mean)


def test_doubled_maps_keep_their_precision_where_autocast_would_make_them_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.rand(1, 2, 3, 3).bfloat16()
    wanted = doubled(maps)
    plain = protocol.F.interpolate
    monkeypatch.setattr(protocol.F, "interpolate", lambda maps, **options: plain(maps.float(), **options))  # as CUDA's does
    assert doubled(maps).dtype == torch.bfloat16
    torch.testing.assert_close(doubled(maps), wanted)
