"""An export needs the memory of a layer and of what it writes, not of the model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_gguf import bpe_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's RssAnon")

SHAPE = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
}
SCRIPT = """
import sys, threading, time
from pathlib import Path
import torch
from tunesmith.exporting import weight_files
from tunesmith.exporting.export import export

torch.set_num_threads(1)
weight_files.FILE_BYTES = 8 * 2**20
base, adapter, output, kind = sys.argv[1:]
suffix = ".gguf" if kind.startswith("gguf") else ""
export(base, output + "-first" + suffix, kind)  # what is imported and allocated once

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024

most, done = 0, False
def watch():
    global most
    while not done:
        most = max(most, anonymous())
        time.sleep(0.001)

before = anonymous()
watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
export(adapter, output + suffix, kind)
done = True
watcher.join()
print(most - before)
"""


@pytest.mark.long
@pytest.mark.parametrize(("kind", "limit_mb"), [("hf", 70), ("gguf:q8_0", 50)])
def test_an_adapter_is_merged_layer_by_layer(kind: str, limit_mb: int, tmp_path: Path) -> None:
    """The model has 82 million weights: 164 MB as it is stored, 327 MB in fp32."""
    tokenizer = bpe_tokenizer()
    torch.manual_seed(0)
    for name, blocks in (("small", 1), ("base", SHAPE["num_hidden_layers"])):
        config = LlamaConfig(**{**SHAPE, "num_hidden_layers": blocks}, vocab_size=len(tokenizer), dtype=torch.bfloat16)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    settings = LoraConfig(r=2, lora_alpha=1, target_modules="all-linear", init_lora_weights=False)
    model = LlamaForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(model, settings).save_pretrained(tmp_path / "adapter")
    places = [str(tmp_path / name) for name in ("small", "adapter", "output")]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *places, kind], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < limit_mb * 10**6
