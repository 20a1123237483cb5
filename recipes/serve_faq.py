"""Train, serve, call: the adapter of faq-lora.yaml behind OpenAI's protocol, asked by OpenAI's own client.

python recipes/serve_faq.py --run runs/faq
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import OpenAI

import tunesmith

QUESTION = [{"role": "user", "content": "How do I add a colleague?"}]
SCHEMA = {
    "type": "object",
    "properties": {"topic": {"enum": ["account", "billing", "team"]}},
    "required": ["topic"],
    "additionalProperties": False,
}


@contextmanager
def served(run: Path) -> Iterator[str]:
    """The address of `tunesmith serve RUN`, on a free port, as long as the block lasts."""
    command = [sys.executable, "-m", "tunesmith", "serve", str(run), "--name", "faq", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            ready = re.search(r"at (\S+/v1)", server.stdout.readline())
            if ready is None:
                sys.exit("The server did not start; it says above why.")
            yield ready[1]
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/faq"))
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    tunesmith.train(Path(__file__).with_name("faq-lora.yaml"), options.run, [f"train.steps={options.steps}"])
    with served(options.run) as address, OpenAI(base_url=address, api_key="none") as client:
        answer = client.chat.completions.create(model="faq", messages=QUESTION, temperature=0, max_completion_tokens=60)
        print("answer:", answer.choices[0].message.content)

        print("stream:", end=" ")
        for event in client.chat.completions.create(
            model="faq", messages=QUESTION, temperature=0, max_completion_tokens=60, stream=True
        ):
            print(event.choices[0].delta.content or "", end="", flush=True)
        print()

        form = {"type": "json_schema", "json_schema": {"name": "topic", "schema": SCHEMA}}
        topic = client.chat.completions.create(model="faq", messages=QUESTION, temperature=0, response_format=form)
        print("schema:", topic.choices[0].message.content)


if __name__ == "__main__":
    main()
