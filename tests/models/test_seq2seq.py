"""An encoder–decoder is trained with the loss of its own forward pass, and generates the answers that it learned."""

import json

import numpy as np
import pytest
import torch
from combinations import few
from families import ENCODER_DECODERS, config_of
from transformers import AutoModelForSeq2SeqLM
from writing import answers

from tunesmith.data.batch import collate
from tunesmith.data.example import Source
from tunesmith.data.tokens import TokenTable
from tunesmith.errors import UserError
from tunesmith.inference.model_reference import ModelReference
from tunesmith.inference.sampling import Sampling
from tunesmith.models.attention import use_document_attention
from tunesmith.models.forward import check_lm_head, next_token_loss, next_token_losses
from tunesmith.training.stages import train


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_loss_and_gradients_equal_those_of_each_pair_alone(family, tied):
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(config_of(family, tie_word_embeddings=tied)).double().eval()
    if family == "bart":
        model.final_logits_bias.normal_()
    use_document_attention(model)
    check_lm_head(model)
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randint(3, 64, (n + m,), generator=generator).split([n, m]) for n, m in ((3, 5), (17, 2), (9, 20))]
    rows = [
        (torch.cat(pair).int().numpy(), np.arange(len(pair[0]) + len(pair[1])) >= len(pair[0]), Source("", number))
        for number, pair in enumerate(pairs)
    ]
    batch = collate(TokenTable.build(rows), range(3))
    expected = []
    for source, target in pairs:
        logits = model(input_ids=source[None], labels=target[None]).logits[0]
        expected.append(torch.nn.functional.cross_entropy(logits, target, reduction="sum"))
    ours = next_token_loss(model, batch)
    torch.testing.assert_close(ours, sum(expected), rtol=1e-9, atol=1e-9)
    row_losses = [losses.sum() for losses in next_token_losses(model, batch).split(batch.loss_tokens_per_row)]
    torch.testing.assert_close(torch.stack(row_losses), torch.stack(expected).detach(), rtol=1e-9, atol=1e-9)
    named = dict(model.named_parameters())
    gradients = torch.autograd.grad(ours, list(named.values()), allow_unused=True, materialize_grads=True)
    expected_gradients = torch.autograd.grad(
        sum(expected), list(named.values()), allow_unused=True, materialize_grads=True
    )
    for name, gradient, expected_gradient in zip(named, gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-9, msg=name)


@pytest.fixture(params=few(ENCODER_DECODERS, ["t5"]))
def base(request, tmp_path):
    from matrix import pair_tokenizer

    tokenizer = pair_tokenizer()
    directory = tmp_path / request.param
    torch.manual_seed(0)
    config = config_of(
        request.param, len(tokenizer), pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id, forced_eos_token_id=None,
    )  # fmt: skip
    AutoModelForSeq2SeqLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def recipe_of(base, tmp_path, **more):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"question": f"w{n}", "answer": f"w{n + 1} w{n}"}) + "\n" for n in range(8)))
    return {
        "base": str(base),
        "data": {"train": str(rows), "held_out": 0.0, "cache": False},
        "method": "full",
        "objective": "seq2seq",
        "train": {"steps": 150, "learning_rate": 5e-3, "precision": "fp32", "evaluate_every": 150},
        **more,
    }


def test_it_memorizes_pairs_and_generates_them_after_saving(base, tmp_path):
    run = train(recipe_of(base, tmp_path), tmp_path / "run")
    reference = ModelReference.find(str(run.directory))
    model = reference.model(torch.float32, torch.device("cpu"))
    chats = [({"role": "user", "content": f"w{n}"},) for n in range(8)]
    assert answers(model, reference.tokenizer(), chats, Sampling(max_new_tokens=8)) == [
        f"w{n + 1} w{n}" for n in range(8)
    ]


def test_an_encoder_decoder_is_refused_for_a_decoder_objective(base, tmp_path):
    with pytest.raises(
        UserError, match=r"is an encoder-decoder; objective: instruction .* Set objective: seq2seq, or another base"
    ):
        train(recipe_of(base, tmp_path, objective="instruction"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_row_with_several_turns_is_refused_by_its_number(base, tmp_path):
    recipe = recipe_of(base, tmp_path)
    rows = tmp_path / "rows.jsonl"
    turns = [{"role": role, "content": "w1"} for role in ("user", "assistant", "user", "assistant")]
    rows.write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(UserError, match=r"rows.jsonl row 1: it has several turns"):
        train(recipe, tmp_path / "run")
