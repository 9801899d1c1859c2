"""Models of which no part may be exchanged for a smaller one."""

import pytest
import torch
from torch import nn

import lightning_topo as lt

X = torch.randn(4, 3)


def perceptron():
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


@pytest.fixture
def one_process():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def refused(model, match):
    with pytest.raises(ValueError, match=match):
        lt.merge_neurons(model, example_input=X)


def test_wrapped_for_many_devices(one_process):
    refused(nn.DataParallel(perceptron()), "wrapped in DataParallel.*merge before")
    refused(nn.parallel.DistributedDataParallel(perceptron()), "wrapped in DistributedDataParallel.*merge before")
    inside = nn.Sequential(nn.parallel.DistributedDataParallel(perceptron()))
    refused(inside, "whose 0 is wrapped in DistributedDataParallel")


@pytest.mark.skipif(torch.__version__ < "2.6", reason="fully_shard is private before torch 2.6")
def test_sharded(one_process):
    from torch.distributed.fsdp import fully_shard

    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    refused(fully_shard(perceptron(), mesh=mesh), "sharded over processes; merge before")


@pytest.mark.parametrize("use_orig_params", [False, True])
@pytest.mark.filterwarnings("ignore:.*NO_SHARD:UserWarning")  # what FSDP1 does in a world of one
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
def test_sharded_by_fsdp1(use_orig_params, one_process):
    from torch.distributed.fsdp import FullyShardedDataParallel

    options = {"device_id": torch.device("cpu"), "use_orig_params": use_orig_params}
    refused(FullyShardedDataParallel(perceptron(), **options), "which is sharded over processes; merge before")
    inside = perceptron()
    inside[2] = FullyShardedDataParallel(inside[2], **options)
    refused(inside, "whose 2 is sharded over processes")


class DeepSpeedEngine(nn.Module):
    """Holds the model as DeepSpeed's class of this name does, in stages 0 to 2 with every parameter whole."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def test_deepspeed():
    refused(DeepSpeedEngine(perceptron()), "wrapped in DeepSpeedEngine, which holds the old parameters; merge before")
    model = perceptron()
    for i, parameter in enumerate(model.parameters()):  # as stage 3 leaves them on every process
        parameter.ds_id, parameter.ds_shape = i, parameter.shape
        parameter.data = torch.empty(0)
    refused(model, "whose 0 is sharded over processes; merge before")


def test_lazy():
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.LazyLinear(2))
    refused(model, "whose 2 is lazy and has no shape yet; run one batch")


def test_compiled():
    refused(torch.compile(perceptron(), backend="eager"), "compiled.*merge before torch.compile")
    model = perceptron()
    model[0].compile(backend="eager")
    refused(model, "whose 0 is compiled")


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_scripted():
    refused(torch.jit.script(perceptron()), "compiled.*merge before")


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_quantised():
    refused(torch.ao.quantization.quantize_dynamic(perceptron(), {nn.Linear}), "quantised.*merge before quantisation")
    model = perceptron()
    model[2].weight = nn.Parameter(torch.ones(2, 5, dtype=torch.int8), requires_grad=False)
    refused(model, "whose 2 is quantised")
    model = perceptron()
    model[2].weight = nn.Parameter(torch.ones(2, 5).to(torch.float8_e4m3fn), requires_grad=False)
    refused(model, "whose 2 is quantised")


def test_parameters_that_share_memory():
    model = perceptron()
    both = torch.randn(5, 8)
    model[0].weight, model[0].bias = nn.Parameter(both[:, :3]), nn.Parameter(both[:, 3])
    refused(model, r"0.weight and 0.bias share memory")
    apart = torch.randn(20)
    model[0].weight, model[0].bias = nn.Parameter(apart[:15].view(5, 3)), nn.Parameter(apart[15:])
    assert lt.merge_neurons(model, example_input=X).groups


def test_no_module():
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module, got 3"):
        lt.merge_neurons(3)


def test_no_units():
    with pytest.raises(ValueError, match="no exchangeable units"):
        lt.merge_neurons(nn.Linear(3, 2), example_input=X)
