import pytest
import torch
from torch import nn

from lightning_topo.neurons import Member, NeuronGroup, select_groups

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
RIGHT = NeuronGroup("mine", (Member("0.weight"), Member("0.bias"), Member("2.weight", axis=1)))
WRONG = NeuronGroup("wrong", (Member("0.weight"), Member("2.weight", axis=1)))


def net():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))


@pytest.mark.parametrize(
    ("groups", "names"),
    [(None, ["0", "2"]), ("*", ["0", "2"]), ("2", ["2"]), (["2", "0*"], ["0", "2"]), (("[!0]",), ["2"])],
)
def test_selection_by_name(groups, names):
    assert [group.name for group in select_groups(net(), groups, X)] == names


def test_glob_that_matches_nothing_lists_the_known_names():
    with pytest.raises(ValueError, match=r"no group matches 'encoder.\*'; known groups: 0, 2"):
        select_groups(net(), ["0", "encoder.*"], X)


def test_empty_list():
    with pytest.raises(ValueError, match="pass None for all of: 0, 2"):
        select_groups(net(), [], X)


def test_no_group_says_what_to_pass():
    with pytest.raises(ValueError, match=r"no exchangeable units were found in Linear; pass groups=\[NeuronGroup"):
        select_groups(nn.Linear(3, 2), None, X)


@pytest.mark.parametrize("groups", [RIGHT, [RIGHT], (RIGHT,)])
def test_groups_given_by_hand_are_used_as_they_are(groups):
    assert select_groups(net(), groups, X) == (RIGHT,)


def test_wrong_group_names_its_members():
    with pytest.raises(ValueError, match=r"a member is missing or wrong: wrong \(.*0.weight.*2.weight"):
        select_groups(net(), [RIGHT, WRONG], X)


def test_without_example_input_only_the_fit_is_checked():
    assert select_groups(net(), [WRONG]) == (WRONG,)
    with pytest.raises(ValueError, match="no parameter or buffer 'nope'"):
        select_groups(net(), [NeuronGroup("g", (Member("nope"),))])


def test_example_input_array_of_the_model_is_an_example():
    model = net()
    model.example_input_array = X
    with pytest.raises(ValueError, match="a member is missing or wrong"):
        select_groups(model, [WRONG])


def test_names_must_be_unique():
    with pytest.raises(ValueError, match="repeated: mine"):
        select_groups(net(), [RIGHT, RIGHT])


@pytest.mark.parametrize("groups", [3, ["0", RIGHT], [Member("0.weight")]])
def test_other_types(groups):
    with pytest.raises(TypeError, match="groups must be None, a glob"):
        select_groups(net(), groups, X)
