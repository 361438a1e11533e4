"""PyTorch models: TorchScript and exported programs give what PyTorch itself gives, through the server too."""

from __future__ import annotations

import asyncio
import gc
import json
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tritonclient.http as triton
from tokenizers import Tokenizer, models, pre_tokenizers

from octavo.errors import Invalid, ModelFailed, OctavoError, OutOfMemory
from octavo.serving.client import Client
from octavo.serving.inference import InferRequest
from octavo.serving.pytorch_backend import PytorchBackend, PytorchRunner
from octavo.serving.repository import Repository
from octavo.settings import ServingSettings, Settings, load_settings

from .conftest import Open
from .live import Up, octavo_up

torch: Any = pytest.importorskip("torch", reason="needs PyTorch: pip install 'octavo[torch]'")
pytestmark = pytest.mark.filterwarnings("ignore")


class Net(torch.nn.Module):
    """Two inputs, two outputs, some width."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.first = torch.nn.Linear(8, width)
        self.last = torch.nn.Linear(width, 4)

    def forward(self, x, scale):
        return self.last(torch.nn.functional.gelu(self.first(x))) * scale, x.sum(1, keepdim=True)


class Table(torch.nn.Module):
    def forward(self, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"sum": given["a"] + given["b"], "difference": given["a"] - given["b"]}


class Optional(torch.nn.Module):
    def forward(self, x, bias: torch.Tensor | None = None, factor: float = 2.0):
        y = x * factor
        return y if bias is None else y + bias


class Between(torch.nn.Module):
    """A default that cannot be sent stands between two tensors, and one that has none."""

    def forward(self, x, factor: float = 2.0, bias: torch.Tensor = torch.ones(1)):
        return x * factor + bias


class Nothing(torch.nn.Module):
    def forward(self, x, bias: torch.Tensor | None):
        return x if bias is None else x + bias


class Writes(torch.nn.Module):
    def forward(self, x):
        x.add_(1)
        return x


class Tokens(torch.nn.Module):
    """A vector per token."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.vectors = torch.nn.Embedding(30, 16)

    def forward(self, input_ids, attention_mask):
        return self.vectors(input_ids) * attention_mask.unsqueeze(-1)


BATCH = "max_batch_size: 64 dynamic_batching { }"
NUMBERED = """
input [{ name: "INPUT__0" data_type: TYPE_FP32 dims: 8 }, { name: "INPUT__1" data_type: TYPE_FP32 dims: 1 }]
output [{ name: "OUTPUT__0" data_type: TYPE_FP32 dims: 4 }, { name: "OUTPUT__1" data_type: TYPE_FP32 dims: 1 }]
"""
NAMED = """
input [{ name: "scale" data_type: TYPE_FP32 dims: 1 }, { name: "x" data_type: TYPE_FP32 dims: 8 }]
output [{ name: "logits" data_type: TYPE_FP32 dims: 4 }, { name: "total" data_type: TYPE_FP32 dims: 1 }]
"""


def inputs(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, 8), np.float32), random.standard_normal((rows, 1), np.float32)


def eager(module: Any, *arrays: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        return [each.numpy() for each in module(*(torch.from_numpy(array.copy()) for array in arrays))]


def script(module: Any, file: Path, *example: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = torch.jit.trace(module.eval(), example) if example else torch.jit.script(module.eval())
        torch.jit.save(made, str(file))


def export(module: Any, file: Path, *example: Any, dynamic: Any = None, **named: Any) -> None:
    program = torch.export.export(module.eval(), example, named, dynamic_shapes=dynamic)
    torch.export.save(program, str(file))


def export_net(file: Path, module: Any = None) -> None:
    rows = torch.export.Dim("rows", min=1, max=64)
    given = [torch.from_numpy(array) for array in inputs(2)]
    export(module or Net(), file, *given, dynamic={"x": {0: rows}, "scale": {0: rows}})


def put(workspace: Path, name: str, config: str, write: Callable[[Path], None], suffix: str = ".pt") -> None:
    folder = workspace / "models" / name / "1"
    folder.mkdir(parents=True)
    write(folder / f"model{suffix}")
    (folder.parent / "config.pbtxt").write_text(f'platform: "pytorch_libtorch" {config}')


Load = Callable[..., PytorchRunner]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Load a model that `write` writes; closed after the test."""
    runners: list[PytorchRunner] = []

    def loaded(config: str, write: Callable[[Path], None], suffix: str = ".pt") -> PytorchRunner:
        name = f"m{len(runners)}"
        put(tmp_path, name, config, write, suffix)
        version = Repository.open(str(tmp_path / "models"), load_settings(tmp_path)).resolve(name)
        runner = PytorchBackend(Settings(serving=ServingSettings(allow_code=True, threads=2))).load(version)
        runners.append(runner)
        return runner

    yield loaded
    for runner in runners:
        runner.close()


@pytest.mark.parametrize("kind", ["scripted", "traced", "frozen", "exported"])
@pytest.mark.parametrize("names", ["numbered", "named"])
def test_it_gives_what_pytorch_gives(load: Load, kind: str, names: str) -> None:
    net = Net()
    x, scale = inputs(5)

    def write(file: Path) -> None:
        if kind == "exported":
            export_net(file, net)
        elif kind == "frozen":
            torch.jit.save(torch.jit.freeze(torch.jit.script(net.eval())), str(file))
        else:
            script(net, file, *([torch.from_numpy(x), torch.from_numpy(scale)] if kind == "traced" else []))

    config = BATCH + (NUMBERED if names == "numbered" else NAMED)
    runner = load(config, write, ".pt2" if kind == "exported" else ".pt")
    first, second = ("INPUT__0", "INPUT__1") if names == "numbered" else ("x", "scale")
    for rows in (1, 5, 33):
        x, scale = inputs(rows, rows)
        said = list(runner.run({first: x, second: scale}).values())
        for got, wanted in zip(said, eager(net, x, scale), strict=True):
            assert got.dtype == np.float32
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert [spec.shape for spec in runner.inputs] == [(-1, 8), (-1, 1)] if names == "numbered" else True


def test_an_exported_program_says_its_own_tensors(load: Load) -> None:
    runner = load("max_batch_size: 64", export_net, ".pt2")
    assert [(spec.name, spec.datatype, spec.shape) for spec in runner.inputs] == [
        ("x", "FP32", (-1, 8)),
        ("scale", "FP32", (-1, 1)),
    ]
    assert [(spec.name, spec.shape) for spec in runner.outputs] == [("OUTPUT__0", (-1, 4)), ("OUTPUT__1", (-1, 1))]
    x, scale = inputs(3)
    np.testing.assert_allclose(runner.run({"x": x, "scale": scale})["OUTPUT__0"], eager(Net(), x, scale)[0], rtol=1e-5)
    with pytest.raises(Invalid, match=r"exported for other inputs: Guard failed: .*<= 64"):
        runner.run(dict(zip(("x", "scale"), inputs(65), strict=True)))


def test_arguments_by_keyword_and_a_dictionary_returned(load: Load) -> None:
    class Keywords(torch.nn.Module):
        def forward(self, x, *, y):
            return {"product": x * y, "sum": x + y}

    runner = load("", lambda file: export(Keywords(), file, torch.ones(2, 3), y=torch.ones(2, 3)), ".pt2")
    x, y = np.full((2, 3), 2, np.float32), np.full((2, 3), 5, np.float32)
    said = runner.run({"x": x, "y": y})
    assert {name: array[0, 0] for name, array in said.items()} == {"product": 10, "sum": 7}


def test_a_dictionary_of_tensors(load: Load) -> None:
    tensors = "".join(f'input {{ name: "{name}" data_type: TYPE_INT64 dims: -1 }}' for name in "ab")
    outputs = 'output { name: "difference" data_type: TYPE_INT64 dims: -1 }'
    runner = load(tensors + outputs, lambda file: script(Table(), file))
    said = runner.run({"a": np.array([5, 6]), "b": np.array([1, 2])})
    assert list(said) == ["difference"]
    assert said["difference"].tolist() == [4, 4]


def test_optional_arguments(load: Load) -> None:
    config = 'input { name: "x" data_type: TYPE_FP32 dims: -1 } output { name: "y" data_type: TYPE_FP32 dims: -1 }'
    bias = 'input { name: "bias" data_type: TYPE_FP32 dims: -1 optional: true }'
    runner = load(config + bias, lambda file: script(Optional(), file))
    x = np.arange(3, dtype=np.float32)
    assert runner.run({"x": x})["y"].tolist() == [0, 2, 4]
    assert runner.run({"x": x, "bias": x})["y"].tolist() == [0, 3, 6]
    assert load(config, lambda file: script(Optional(), file)).run({"x": x})["y"].tolist() == [0, 2, 4]
    runner = load(config + bias, lambda file: script(Between(), file))
    assert runner.run({"x": x})["y"].tolist() == [1, 3, 5]
    assert runner.run({"x": x, "bias": x})["y"].tolist() == [0, 3, 6]
    runner = load(config + bias, lambda file: script(Nothing(), file))
    assert runner.run({"x": x})["y"].tolist() == [0, 1, 2]
    assert runner.run({"x": x, "bias": x})["y"].tolist() == [0, 2, 4]
    required = config.replace("dims: -1 }", "dims: -1 optional: true }", 1)
    assert not load(required, lambda file: script(Optional(), file)).inputs[0].optional, "forward cannot do without"


def test_every_datatype(load: Load) -> None:
    class Same(torch.nn.Module):
        def forward(self, x):
            return x

    for kind in ("BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"):
        tensor = f'name: "x" data_type: TYPE_{kind} dims: [-1, 2]'
        runner = load(f"input {{ {tensor} }} output {{ {tensor} }}", lambda file: script(Same(), file))
        dtype = runner.inputs[0].datatype
        array = np.array([[0, 1], [1, 1]]).astype(np.dtype("bool") if kind == "BOOL" else _numpy(dtype))
        said = runner.run({"x": array})["x"]
        assert said.dtype == array.dtype
        np.testing.assert_array_equal(said, array)


def _numpy(datatype: str) -> Any:
    from octavo.serving.tensors import NUMPY_OF

    return NUMPY_OF[datatype]


def test_what_others_read_is_not_written_to(load: Load) -> None:
    tensor = 'name: "x" data_type: TYPE_FP32 dims: -1'
    runner = load(f"input {{ {tensor} }} output {{ {tensor} }}", lambda file: script(Writes(), file))
    x = np.arange(3, dtype=np.float32)
    x.flags.writeable = False
    assert runner.run({"x": x})["x"].tolist() == [1, 2, 3]
    assert x.tolist() == [0, 1, 2]
    assert runner.run({"x": np.arange(6, dtype=np.float32)[::2]})["x"].tolist() == [1, 3, 5]


@pytest.mark.parametrize(
    "parameters",
    [
        {"INFERENCE_MODE": "false", "DISABLE_OPTIMIZED_EXECUTION": "true"},
        {"INFERENCE_MODE": "true", "ENABLE_JIT_EXECUTOR": "true", "ENABLE_WEIGHT_SHARING": "true"},
        {"INTRA_OP_THREAD_COUNT": "4", "INTER_OP_THREAD_COUNT": "4", "ENABLE_CACHE_CLEANING": "true"},
    ],
)
def test_tritons_parameters(load: Load, parameters: dict[str, str]) -> None:
    text = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in parameters.items()
    )
    runner = load(BATCH + NUMBERED + text, lambda file: script(Net(), file))
    x, scale = inputs(4)
    for _ in range(3):
        said = runner.run({"INPUT__0": x, "INPUT__1": scale})
        np.testing.assert_allclose(said["OUTPUT__0"], eager(Net(), x, scale)[0], rtol=1e-5, atol=1e-6)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ("", "does not say its types"),
        (NUMBERED.replace("INPUT__1", "INPUT__7"), "no argument is meant by input 'INPUT__7'"),
        (NUMBERED.replace("INPUT__1", "x"), "two inputs mean the same argument"),
        (NAMED.replace('"x"', '"images"'), "no argument is meant by input 'images'"),
        (NAMED.replace('{ name: "scale" data_type: TYPE_FP32 dims: 1 },', ""), "argument 'scale' is not declared"),
    ],
)
def test_declarations_that_do_not_fit(load: Load, config: str, complaint: str) -> None:
    with pytest.raises(Invalid, match=complaint):
        load(config, lambda file: script(Net(), file))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("OUTPUT__1", "OUTPUT__2"), "returned no output 'OUTPUT__2'"),
        (("TYPE_FP32 dims: 4", "TYPE_FP64 dims: 4"), "is FP32, the configuration says FP64"),
        (("TYPE_FP32 dims: 4", "TYPE_FP32 dims: 5"), r"has shape \[2, 4\], the configuration says \[-1, 5\]"),
    ],
)
def test_answers_that_are_not_as_declared(load: Load, change: tuple[str, str], complaint: str) -> None:
    runner = load(BATCH + NUMBERED.replace(*change), lambda file: script(Net(), file))
    x, scale = inputs(2)
    with pytest.raises(ModelFailed, match=complaint):
        runner.run({"INPUT__0": x, "INPUT__1": scale})


def test_a_batch_larger_than_memory(load: Load) -> None:
    class Greedy(torch.nn.Module):
        def forward(self, x):
            return torch.zeros([x.size(0), 10_000_000, 10_000_000]) if x[0] > 0 else x

    tensor = "data_type: TYPE_FP32 dims: -1"
    runner = load(
        f'input {{ name: "x" {tensor} }} output {{ name: "y" {tensor} }}', lambda file: script(Greedy(), file)
    )
    with pytest.raises(OutOfMemory, match="no memory to run the batch"):
        runner.run({"x": np.ones(3, np.float32)})
    assert runner.run({"x": np.zeros(3, np.float32)})["y"].tolist() == [0, 0, 0]


def test_a_run_that_fails_says_why_and_harms_nothing(load: Load) -> None:
    runner = load(BATCH + NUMBERED.replace("dims: 8", "dims: -1"), lambda file: script(Net(), file))
    with pytest.raises(ModelFailed, match=r"the model failed: mat1 and mat2 shapes cannot be multiplied \(2x9 and"):
        runner.run({"INPUT__0": np.zeros((2, 9), np.float32), "INPUT__1": np.zeros((2, 1), np.float32)})
    x, scale = inputs(2)
    runner.run({"INPUT__0": x, "INPUT__1": scale})
    runner.close()
    with pytest.raises(OctavoError, match="was unloaded"):
        runner.run({"INPUT__0": x, "INPUT__1": scale})


def _pickled(file: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, str(file))


def _cut(file: Path) -> None:
    script(Net(), file)
    file.write_bytes(file.read_bytes()[:-300])


def _machine_code(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("m/archive_format", "pt2")
        archive.writestr("m/data/aotinductor/model/model.so", "\x7fELF")


@pytest.mark.parametrize(
    ("write", "suffix", "complaint"),
    [
        (lambda file: file.write_bytes(b"junk" * 100), ".pt", "cannot read it as a TorchScript archive"),
        (lambda file: file.write_bytes(b"junk" * 100), ".pt2", "not an exported program"),
        (_pickled, ".pt", "cannot read it as a TorchScript archive"),
        (_pickled, ".pt2", "cannot read it as an exported program"),
        (_cut, ".pt", "cannot read it as a TorchScript archive"),
        (lambda file: script(Net(), file), ".pt2", "cannot read it as an exported program"),
        (export_net, ".pt", "cannot read it as a TorchScript archive"),
        (_machine_code, ".pt2", "machine code"),
    ],
)
def test_files_that_are_none(
    load: Load, write: Callable[[Path], None], suffix: str, complaint: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Invalid, match=complaint) as caught:
        load(BATCH + NUMBERED, write, suffix)
    assert "/tmp" not in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err


def test_memory_comes_back(load: Load) -> None:
    """A model of 64 MiB is in the heap while it is loaded, and nothing of it after, however often."""
    process = psutil.Process()
    config = BATCH + NUMBERED
    script_file = script
    x, scale = inputs(2)

    def heap() -> int:
        gc.collect()
        return int(process.memory_full_info().uss)

    held = []
    for _ in range(6):
        runner = load(config, lambda file: script_file(Net(width=2**20), file))
        runner.run({"INPUT__0": x, "INPUT__1": scale})
        loaded = heap()
        runner.close()
        held.append(heap())
        assert loaded - held[-1] > 48 * 2**20
    assert held[-1] - held[1] < 24 * 2**20, held


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    """`script` and `exported` (the same net), `tokens` (text embedding of an exported encoder)."""
    workspace = tmp_path / "workspace"
    net = Net()
    put(workspace, "script", BATCH + NUMBERED, lambda file: script(net, file))
    put(workspace, "exported", "max_batch_size: 64 dynamic_batching { }", lambda file: export_net(file, net), ".pt2")

    def write(file: Path) -> None:
        rows, tokens = torch.export.Dim("rows", max=64), torch.export.Dim("tokens", max=512)
        given = torch.ones(2, 3, dtype=torch.int64)
        axes = {0: rows, 1: tokens}
        export(Tokens(), file, given, given.clone(), dynamic={"input_ids": axes, "attention_mask": axes})
        words = {word: at for at, word in enumerate(["[UNK]", *"abcdefgh"])}
        tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(file.with_name("tokenizer.json")))

    task = "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in {"task": "text-embedding", "normalize": "false"}.items()
    )
    put(workspace, "tokens", "max_batch_size: 64 dynamic_batching { }" + task, write, ".pt2")
    return workspace


async def test_many_at_once_share_batches_and_get_their_own_answers(workspace: Path, open_serving: Open) -> None:
    serving = await open_serving(workspace, allow_code=True)
    for name, first, second, output in (
        ("script", "INPUT__0", "INPUT__1", "OUTPUT__0"),
        ("exported", "x", "scale", "OUTPUT__0"),
    ):
        asked = [inputs(1 + at % 3, at) for at in range(60)]
        found = await asyncio.gather(
            *(serving.infer(InferRequest(name, {first: x, second: scale})) for x, scale in asked)
        )
        for (x, scale), answer in zip(asked, found, strict=True):
            np.testing.assert_allclose(answer.outputs[output], eager(Net(), x, scale)[0], rtol=1e-4, atol=1e-5)
        batches = sum(each.count for counts in serving.statistics(name) for each in counts.batches.values())
        assert batches < 60
    told = await serving.metadata("script")
    assert (told.platform, [spec.shape for spec in told.inputs]) == ("pytorch_libtorch", [(-1, 8), (-1, 1)])


async def test_the_ledger_sees_it_come_and_go(tmp_path: Path, open_serving: Open) -> None:
    put(tmp_path, "small", BATCH + NUMBERED, lambda file: script(Net(), file))
    put(tmp_path, "large", BATCH + NUMBERED, lambda file: script(Net(width=2**21), file))
    serving = await open_serving(tmp_path, allow_code=True)
    request = InferRequest("large", dict(zip(("INPUT__0", "INPUT__1"), inputs(2), strict=True)))
    small = InferRequest("small", request.inputs)
    await serving.infer(small)  # so that what PyTorch makes once is there
    before = (await serving.measure()).charged_bytes
    await serving.infer(request)
    (held,) = (model for model in (await serving.measure()).models if model.name == "large")
    size = 2**21 * 13 * 4
    assert 0.8 * size < held.bytes < 2 * size
    await serving.unload("large")
    assert (await serving.measure()).charged_bytes - before < size / 2


async def test_a_text_encoder(workspace: Path, open_serving: Open) -> None:
    serving = await open_serving(workspace, allow_code=True)
    text = np.array([b"a b c", b"h", b"a zzz"], dtype=object)
    said = (await serving.infer(InferRequest("tokens", {"text": text}))).outputs["embedding"]
    vectors = Tokens().vectors.weight.detach().numpy()
    wanted = [vectors[ids].mean(0) for ids in ([1, 2, 3], [8], [1, 0])]
    np.testing.assert_allclose(said, wanted, rtol=1e-5, atol=1e-6)


async def test_code_must_be_allowed(workspace: Path, open_serving: Open) -> None:
    serving = await open_serving(workspace)
    with pytest.raises(OctavoError, match="a PyTorch model is a program"):
        await serving.infer(InferRequest("script", {}))


@pytest.fixture
def server(workspace: Path) -> Iterator[Up]:
    with octavo_up(workspace, OCTAVO_SERVING__ALLOW_CODE="true") as up:
        yield up


def test_clients_ask_it(server: Up) -> None:
    x, scale = inputs(3)
    wanted = eager(Net(), x, scale)
    with Client(server.url, token=server.token) as client:
        said = client.infer("exported", {"x": x, "scale": scale})
        np.testing.assert_allclose(said["OUTPUT__0"], wanted[0], rtol=1e-4, atol=1e-5)
        assert client.embed(["a b"], "tokens").shape == (1, 16)
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    given = []
    for name, array in (("INPUT__0", x), ("INPUT__1", scale)):
        given.append(triton.InferInput(name, list(array.shape), "FP32"))
        given[-1].set_data_from_numpy(array)
    found = client.infer("script", given, headers={"authorization": f"Bearer {server.token}"})
    for name, array in zip(("OUTPUT__0", "OUTPUT__1"), wanted, strict=True):
        np.testing.assert_allclose(found.as_numpy(name), array, rtol=1e-4, atol=1e-5)
    told = client.get_model_config("script", headers={"authorization": f"Bearer {server.token}"})
    assert told["backend"] == "pytorch"
    assert json.dumps(told["instance_group"]).count("KIND_AUTO") == 1
    client.close()
