"""What a pretrained model has no room for is refused."""

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from dlm.errors import ConfigError
from dlm.model.adapt import check_length


@pytest.mark.parametrize("shift", [False, True])
def test_a_text_longer_than_the_positions_says_what_takes_them(shift: bool) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_positions=16, n_embd=4, n_layer=1, n_head=1))
    check_length(model, 16, shift=shift)
    with pytest.raises(ConfigError, match="positions for 16 tokens and is asked to see 17") as caught:
        check_length(model, 17, shift=shift)
    assert ("model.shift" in str(caught.value)) == shift
