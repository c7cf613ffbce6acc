# ruff: noqa: E501  templates are data
"""Chat templates: the text transformers would render, and no more work than the budget."""

import json
import time

import pytest
from jinja2.exceptions import SecurityError
from tiny_artifacts import seal, write_decoder

from onnxforge.runtimes import ArtifactError, RequestError, load
from onnxforge.runtimes.chat_template import ChatTemplate

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are helpful<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = """
{%- if messages[0]['role'] == 'system' %}
    {%- set loop_messages = messages[1:] %}
    {%- set system_message = '<<SYS>>\\n' + messages[0]['content'] | trim + '\\n<</SYS>>\\n\\n' %}
{%- else %}
    {%- set loop_messages = messages %}
    {%- set system_message = '' %}
{%- endif %}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (system_message if loop.index0 == 0 else '') + message['content'].strip() }}
        {{- ' [/INST]' }}
    {%- else %}
        {%- generation %}
        {{- ' ' + message['content'] | trim + ' ' + eos_token }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
"""
TOOLS = """
{%- macro line(tool) %}
    {{- '- ' ~ tool.name ~ ': ' ~ tool | tojson(indent=2) }}
{% endmacro %}
{%- set ns = namespace(last=-1, text='') %}
{%- if tools is defined and tools %}
    {%- for tool in tools %}{{ line(tool) }}{% endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if loop.index > 40 %}{% break %}{% endif %}
    {%- if message.content is string %}
        {%- set ns.text = ns.text ~ message.content | upper | replace('A', 'b') %}
    {%- else %}
        {%- for part in message.content | selectattr('type', 'equalto', 'text') %}
            {%- set ns.text = ns.text + part['text'].split('\\n')[-1].lstrip('<') %}
        {%- endfor %}
    {%- endif %}
    {%- if message.role == 'tool' and (loop.last or messages[loop.index0 + 1].role != 'tool') %}
        {%- set ns.last = loop.index0 %}
    {%- endif %}
{%- endfor %}
{{ ns.text }} {{ ns.last }} {{ messages | map(attribute='role') | join(', ') }} {{ messages | length }}
{{ {'é': [1, 2.5, none, true]} | tojson }} {{ 'x' * 3 }} {{ 2 ** 5 }} {{ '%s-%02d' % ('a', 7) }}
{{ 'a, b'.split(', ')[::-1] }} {{ messages[-1]['role'] in ['user', 'tool'] }} {{ 7 // 2 }} {{ 'abc'[1:] | first }}
{{ "{} {}".format('q', 1) }} {{ range(3) | list }} {{ (1, 2) + (3,) }} {{ [3, 1] | sort }} {{ 'hi' | indent(4, true) }}
"""
CHATS = [
    [{"role": "user", "content": "hello <b> & 'you'"}],
    [
        {"role": "system", "content": " be brief "},
        {"role": "user", "content": "日本語 🙂"},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "again"},
    ],
]
PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "a\n<b"}, {"type": "image"}]},
    {"role": "tool", "content": "banana"},
]
SPECIALS = {"bos_token": "<s>", "eos_token": "</s>"}


def reference(source, messages, **variables):
    from transformers.utils.chat_template_utils import render_jinja_template

    texts, _ = render_jinja_template([messages], chat_template=source, **SPECIALS, **variables)
    return texts[0]


@pytest.mark.parametrize(
    ("source", "generation"),
    [(CHATML, True), (CHATML, False), (LLAMA2, False), (TOOLS, True), (TOOLS, False)],
    ids=["chatml-on", "chatml-off", "llama2-off", "tools-on", "tools-off"],
)
@pytest.mark.parametrize("messages", CHATS, ids=["one", "four"])
def test_text_is_that_of_transformers(source, messages, generation):
    tools = [{"name": "f", "parameters": {"x": "größe"}}]
    expected = reference(source, messages, tools=tools, add_generation_prompt=generation)
    found = ChatTemplate(source, SPECIALS).render(messages, add_generation_prompt=generation, tools=tools)
    assert found == expected


def test_parts_and_tools_too():
    assert ChatTemplate(TOOLS, SPECIALS).render(PARTS) == reference(TOOLS, PARTS, add_generation_prompt=True)


def test_the_date_can_be_asked_for():
    assert ChatTemplate("{{ strftime_now('%Y') }}", {}).render([]) == time.strftime("%Y")


def test_a_template_may_refuse_the_messages():
    with pytest.raises(RequestError, match="roles must alternate"):
        ChatTemplate(LLAMA2, SPECIALS).render([{"role": "assistant", "content": "hi"}])
    with pytest.raises(RequestError, match="refused these messages"):
        ChatTemplate("{{ messages[0].nothing.more }}", {}).render(CHATS[0])


def test_long_chats_and_long_texts_are_within_the_budget():
    chat = [{"role": ("user", "assistant")[i % 2], "content": "word " * 200} for i in range(1001)]
    assert len(ChatTemplate(CHATML, SPECIALS).render(chat)) > 1_000_000
    assert len(ChatTemplate(LLAMA2, SPECIALS).render(chat)) > 1_000_000
    one = [{"role": "user", "content": "x" * 1_000_000}]
    assert len(ChatTemplate(CHATML, SPECIALS).render(one)) > 1_000_000


ATTACKS = {
    "range in range": "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
    "one huge range": "{{ range(10**9) | list }}",
    "lists in a loop": "{% for a in range(9999) %}{% set x = range(99999) | list %}{% endfor %}",
    "repeated text": "{{ 'a' * 10**10 }}",
    "repeated list": "{{ [0] * 10**10 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "power of a power": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "center filter": "{{ 'a' | center(10**10) }}",
    "center method": "{{ 'a'.center(10**10) }}",
    "ljust": "{{ 'a'.ljust(10**10) }}",
    "zfill": "{{ 'a'.zfill(10**10) }}",
    "expandtabs": "{% set t = '\\t' * 100000 %}{{ t.expandtabs(100000) }}",
    "indent": "{% set t = '\\n' * 100000 %}{{ t | indent(100000) }}",
    "percent width": "{{ '%10000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10**9, 1) }}",
    "format width": "{{ '{:>10000000000}'.format('a') }}",
    "format nested width": "{{ '{:>{}}'.format('a', 10**9) }}",
    "format filter": "{{ '%10000000000d' | format(1) }}",
    "tojson indent": "{{ [[[[1]]]] | tojson(indent=10**9) }}",
    "doubling by plus": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubling by tilde": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "doubling by replace": "{% set n = namespace(x='a') %}"
    "{% for i in range(60) %}{% set n.x = n.x | replace('a', 'aa') %}{% endfor %}",
    "replace method": "{% set t = 'a' * 1000000 %}{{ t.replace('a', t) }}",
    "replace nothing": "{% set t = 'a' * 1000000 %}{{ t.replace('', t) }}",
    "doubling by join": "{% set n = namespace(x='ab') %}"
    "{% for i in range(60) %}{% set n.x = [n.x, n.x] | join %}{% endfor %}",
    "join with text": "{% set t = 'a' * 1000000 %}{{ range(99999) | join(t) }}",
    "join of a generator": "{% set t = 'a' * 1000000 %}{{ range(99999) | map('string') | join(t) }}",
    "generators in a loop": "{% for i in range(9999) %}{% set x = range(9999) | map('string') | list %}{% endfor %}",
    "join method": "{% set t = 'a' * 1000000 %}{{ t.join(['a'] * 100000) }}",
    "doubling by blocks": "{% set n = namespace(x='ab') %}"
    "{% for i in range(60) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
    "doubling by macros": "{% macro d(t) %}{{ t }}{{ t }}{% endmacro %}{% set n = namespace(x='ab') %}"
    "{% for i in range(60) %}{% set n.x = d(n.x) %}{% endfor %}",
    "nested lists printed": "{% set n = namespace(x=[1]) %}"
    "{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "nested lists to json": "{% set n = namespace(x=[1]) %}"
    "{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | tojson }}",
    "nested lists as text": "{% set n = namespace(x=[1]) %}"
    "{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{% set y = n.x | string %}",
    "nested lists compared": "{% set n = namespace(x=[1], y=[1]) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}{{ n.x == n.y }}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching recursion": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive loop": "{% for i in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}",
    "much output": "{% set t = 'a' * 1000000 %}{% for i in range(50) %}{{ t }}{% endfor %}",
    "lorem ipsum": "{{ lipsum(n=100000) }}",
    "cycler": "{{ cycler(1, 2) }}",
    "joiner": "{{ joiner(',') }}",
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__['__builtins__'] }}",
    "init globals": "{{ namespace.__init__.__globals__ }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "format attribute": "{{ '{0.__class__.__init__.__globals__}'.format(namespace) }}",
    "map attribute": "{{ [''] | map(attribute='__class__') | map('upper') | list }}",
    "change a list": "{{ messages.append(1) }}",
    "change a message": "{{ messages[0].update(role='system') }}",
    "import": "{% import 'os' as os %}{{ os }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends '/etc/passwd' %}",
    "batches": "{{ range(10) | batch(10**9, 0) | list }}",
    "slices": "{{ range(10) | slice(10**9) | list }}",
    "wrap": "{% set t = 'a ' * 500000 %}{% for i in range(99999) %}{% set x = t | wordwrap(1) %}{% endfor %}",
    "search in a loop": "{% set t = 'a' * 1000000 %}{% for i in range(99999) %}{% set x = 'b' in t %}{% endfor %}",
    "count in a loop": "{% set t = 'a' * 1000000 %}{% for i in range(99999) %}{% set x = t.count('ab') %}{% endfor %}",
    "sums": "{% for i in range(9999) %}{% set x = range(99999) | sum %}{% endfor %}",
}


@pytest.mark.parametrize("source", ATTACKS.values(), ids=ATTACKS)
def test_attacks_end_quickly_in_an_error_or_in_nothing(source):
    messages = [{"role": "user", "content": "hi"}]
    started = time.perf_counter()
    try:
        text = ChatTemplate(source, {}).render(messages)
    except (ArtifactError, RequestError):
        pass
    else:
        assert text.strip() in ("", "[]", "['']"), text[:200]
    assert time.perf_counter() - started < 10
    assert messages == [{"role": "user", "content": "hi"}]


def test_what_a_template_sees_cannot_be_changed_by_another_rendering():
    template = ChatTemplate("{% set n = namespace(x=1) %}{{ n.x }}{{ messages[0].content }}", {})
    assert [template.render([{"content": str(i)}]) for i in range(3)] == ["10", "11", "12"]


@pytest.mark.parametrize("source", ["{% for %}", "{{ ", "{{" + "(" * 50_000 + "}}", "{{ x | nosuch }}"])
def test_templates_that_are_none_are_artifact_errors(source):
    with pytest.raises(ArtifactError, match="chat template does not compile"):
        ChatTemplate(source, {})


def test_a_template_has_a_size_limit():
    with pytest.raises(ArtifactError, match="at most 262144"):
        ChatTemplate("x" * 300_000, {})


def test_exhaustion_is_told_as_such():
    with pytest.raises(RequestError, match="more than 100000 steps") as caught:
        ChatTemplate(ATTACKS["range in range"], {}).render([])
    assert isinstance(caught.value.__cause__, SecurityError)


@pytest.mark.parametrize(
    "written",
    [
        "T{{ messages[0].content }}{{ bos_token }}{{ eos_token }}",
        [
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": "T{{ messages[0].content }}{{ bos_token }}{{ eos_token }}"},
        ],
    ],
)
def test_older_models_keep_their_template_in_tokenizer_config(tmp_path, written):
    folder = write_decoder(tmp_path / "a")
    (folder / "chat_template.jinja").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": written}))
    seal(folder)
    with load(folder) as model:
        assert model.chat_template.render([{"role": "user", "content": "x"}]) == "Tx<|bos|><|eos|>"
