"""Generation with a base model, with or without a released adapter: to look at, not to measure. Greedy, repeatable."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel

from fl_protocol.spec.tasks.instruction_tuning import Template
from site_agent.jobs.job_dir import DeviceChoice
from site_agent.training.adapters.peft_names import peft_warnings_silenced
from site_agent.training.causal_model import load_base, load_tokenizer
from site_agent.training.completion_loss import has_virtual_tokens
from site_agent.training.device import choose_compute
from site_agent.training.errors import AdapterUnreadableError
from site_agent.training.tasks.text_tasks import TurnEncoder

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """What a model answered; ``adapter`` is a folder, or None for the base alone."""

    adapter: str | None
    text: str


def generate(
    base_model: Path,
    adapters: list[Path | None],
    *,
    prompt: str,
    max_new_tokens: int,
    template: Template = Template.CHAT,
) -> tuple[Generation, ...]:
    """Answer a question with each adapter in turn, on one base that is loaded once.

    Raises:
        BaseModelError: the base cannot be loaded.
        ChatTemplateError: it lacks what the template needs.
        AdapterUnreadableError: a folder holds no adapter for this base.
    """
    compute = choose_compute(DeviceChoice.AUTO)
    if compute.device.type == "cpu":
        # One token at a time is bound by memory: threads that wait for each other at every layer only slow it down.
        torch.set_num_threads(1)
    tokenizer = load_tokenizer(base_model)
    base = load_base(base_model, compute)
    input_ids = torch.tensor([TurnEncoder(tokenizer, template, max_length=1).prompt_ids(prompt)])
    generations: list[Generation] = []
    for adapter in adapters:
        model = base if adapter is None else load_release(base, adapter)
        ids = input_ids.to(compute.device)
        with torch.inference_mode(), peft_warnings_silenced():
            answer = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=getattr(tokenizer, "pad_token_id", None) or 0,
            )
        text = tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True)
        generations.append(Generation(adapter=None if adapter is None else str(adapter), text=text.strip()))
        if adapter is not None:
            base = model.get_base_model() if has_virtual_tokens(model) else model.unload()
    return tuple(generations)


def load_release(base: torch.nn.Module, adapter: Path) -> PeftModel:
    """Put a released adapter on a base, from safetensors only.

    Raises:
        AdapterUnreadableError: the folder holds no adapter for this base.
    """
    for name in ADAPTER_FILES:
        # Safety: without the safetensors file peft would look for a pickle.
        if not (adapter / name).is_file():
            raise AdapterUnreadableError("the folder holds no released adapter", missing=name)
    try:
        with peft_warnings_silenced():
            return PeftModel.from_pretrained(base, str(adapter)).eval()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        message = "peft cannot put this adapter on the base model"
        raise AdapterUnreadableError(message, reason=type(error).__name__) from error
