"""What drafting is held against: plain decoding that reads an even number of rows in every run."""

from tiny_artifacts import SHARED, SHARED_POSITIONS, Form

NO_EOS = {"eos_token_id": []}
FORMS = (SHARED, SHARED_POSITIONS, Form(keeps_logits=False), Form(int8=True))
PROMPTS = ["the hand and the hand and", "a", "over and over the same words", [7], [7] * 30]


def reference(model, prompt, count, **options):
    return model.generate(prompt, max_new_tokens=count, min_rows=2, max_draft_tokens=0, **options)


def same(got, expected):
    assert (got.token_ids, got.text, got.finish_reason) == (
        expected.token_ids,
        expected.text,
        expected.finish_reason,
    )
