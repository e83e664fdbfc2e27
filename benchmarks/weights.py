"""The default model in other forms: other quantizations, with an adapter, or both merged.

Only `benchmarks.engine` uses this. It is slower than llama.cpp's quantizer, which the engine's
wheel does not include, and writes the same blocks.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np


def requantised(given: Path, form: str, out: Path, adapter: Path | None = None) -> Path:
    """Write `given` to `out` with matrices in `form` and `adapter` merged into them; return `out`.

    `form` is a name of `gguf.GGMLQuantizationType` that the gguf package can write, such as Q8_0,
    Q4_0 or BF16. The embedding keeps its form, because it is also the output matrix.
    """
    reader = gguf.GGUFReader(given)
    added = _products(adapter) if adapter else {}
    wanted = gguf.GGMLQuantizationType[form]
    writer = gguf.GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        listed = field.types[0] == gguf.GGUFValueType.ARRAY
        sub_type = field.types[-1] if listed else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub_type)
    for tensor in reader.tensors:
        matrix = tensor.name.startswith("blk.") and len(tensor.shape) > 1
        data, kind = tensor.data, tensor.tensor_type
        if matrix and (kind != wanted or tensor.name in added):
            plain = gguf.dequantize(data, kind) + added.get(tensor.name, 0)
            data, kind = gguf.quants.quantize(plain.astype(np.float32), wanted), wanted
        writer.add_tensor(tensor.name, np.ascontiguousarray(data), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _products(adapter: Path) -> dict[str, Any]:
    """`{tensor: alpha / rank * B @ A}`, in the row order of the GGUF base."""
    reader = gguf.GGUFReader(adapter)
    alpha = float(reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents())
    sides = {tensor.name: tensor.data for tensor in reader.tensors}
    names = [name.removesuffix(".lora_a") for name in sides if name.endswith(".lora_a")]
    found: dict[str, Any] = {}
    for name in names:
        a, b = sides[f"{name}.lora_a"], sides[f"{name}.lora_b"]
        found[name] = alpha / a.shape[0] * (b @ a)
    return found


def random_adapter(folder: Path) -> Path:
    """A LoRA like a student's (rank 16, every linear layer) with small random matrices, as GGUF.

    Its values are small, so answers keep about the base's length while every product is computed.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from reflux.agents.clients.llama_cpp import default_gguf
    from reflux.finetune.base_model import dequantised_base, load_base
    from reflux.finetune.export.gguf import export_adapter

    base = dequantised_base(default_gguf())
    torch.manual_seed(0)
    lora = LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear")
    student: Any = get_peft_model(load_base(base)[0], lora)
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.002)
    student.save_pretrained(folder, save_embedding_layers=False)
    return export_adapter(folder, base, folder / "adapter.gguf")
