"""Two models, of which one may be in memory, and which can be compared."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelassay.diff.pair import Pair, check_comparable, traits_of
from modelassay.diff.weights import diff_pair
from modelassay.errors import InputError, UnavailableError
from modelassay.models import load
from tiny import save_tiny


def test_files_are_compared_with_one_model_in_memory(gpt2, tmp_path):
    other = save_tiny(tmp_path / "other", "gpt2", seed=1)
    pair = Pair(lambda: load(str(gpt2)), lambda: load(str(other)), together=False)
    alone = diff_pair(pair)
    assert len(pair._held) == 1
    assert alone == diff_pair(Pair(lambda: load(str(gpt2)), lambda: load(str(other))))
    with pytest.raises(UnavailableError, match="no room"):
        diff_pair(replace(pair, given=("base", "candidate")))


def test_a_pair_holds_one_model_where_two_do_not_fit(gpt2):
    pair = Pair(lambda: load(str(gpt2)), lambda: load(str(gpt2)), together=False)
    first = pair.base
    assert pair.base is first
    assert pair.candidate is not None
    assert pair.base is not first


def test_other_architectures_sizes_and_tokens_are_refused(gpt2, tiny, tmp_path):
    base = traits_of(load(str(gpt2)))
    with pytest.raises(InputError, match="LlamaForCausalLM"):
        check_comparable(base, traits_of(tiny()))
    with pytest.raises(InputError, match="one 4 of"):
        check_comparable(base, replace(base, model=base.model.model_copy(update={"n_layers": 4})))
    swapped = {**base.vocabulary, "a": base.vocabulary["b"], "b": base.vocabulary["a"]}
    with pytest.raises(InputError, match="2 have other numbers"):
        check_comparable(base, replace(base, vocabulary=swapped))
    fewer = {k: v for k, v in base.vocabulary.items() if k != "a"}
    with pytest.raises(InputError, match="1 are missing"):
        check_comparable(base, replace(base, vocabulary=fewer))
    more = replace(base, vocabulary={**base.vocabulary, "<new>": 999}, chat_template="other")
    added, template = check_comparable(base, more)
    assert "1 more tokens" in added
    assert "templates differ" in template
