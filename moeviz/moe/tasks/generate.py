"""A checkpoint goes on with a text, character by character."""

from pathlib import Path

import torch

from moeviz.domain.messages import UserError
from moeviz.domain.settings import Settings
from moeviz.moe.checkpoint import load, state_of
from moeviz.moe.model import CharModel, router_options
from moeviz.moe.routers import Router
from moeviz.moe.tasks.text import encode
from moeviz.moe.trainer import check_device


@torch.no_grad()
def generate(path: str | Path, text: str, count: int, settings: Settings, *, device: str = "cpu", seed: int = 0) -> str:
    """The text and `count` characters more, drawn from the model's own distribution; `settings` may differ in routing.

    Both must fit in the model's context, and the routing of a character must not depend on later ones: then one pass
    over the result routes each character as it was routed while the text was made.
    """
    saved = load(path)
    check_device(device)
    if not isinstance(saved.vocabulary, str):
        raise UserError(f"--generate goes on with text only; this is a model of the task {saved.settings.task}.")
    if settings.routing.router != saved.settings.routing.router:
        raise UserError("--generate cannot go with another routing.router; leave out one of them.")
    model = CharModel(saved.settings, len(saved.vocabulary)).eval()
    if len(text) + count > model.context:
        raise UserError(
            f"The text has {len(text)} characters and {count} are to come, but the model's context is {model.context}; "
            "shorten one of them."
        )
    for name, parameter in model.named_parameters():
        parameter.copy_(saved.parameters[name])
    for name, buffer in state_of(model).items():
        buffer.copy_(saved.state[name])
    for layer in model.layers:
        _set(layer.router, settings)
    model.to(device)
    generator = torch.Generator().manual_seed(seed)
    ids = encode(text, saved.vocabulary).tolist()
    for _ in range(count):
        logits, _ = model(torch.tensor([ids], device=device))
        probabilities = torch.softmax(logits[0, -1].double().cpu(), 0)
        probabilities[0] = 0  # id 0 is every unknown character, so it has no form of its own
        ids.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    return text + "".join(saved.vocabulary[i] for i in ids[len(text) :])


def _set(router: Router, settings: Settings) -> None:
    """Give the router the settings' k and options. UserError where it cannot have them, or cannot write text."""
    router.k = min(settings.routing.k, router.num_ffn)
    for name, value in router_options(settings).items():
        if name in router.structure and getattr(router, name) != value:
            raise UserError(f"--generate cannot go with another routing.{name}; leave out one of them.")
        setattr(router, name, value)
    if router.drops:
        raise UserError(
            "--generate cannot go with a capacity, for how much an expert takes depends on the characters that are "
            "still to come; add --set routing.capacity_factor=0."
        )
    if router.looks_ahead:
        raise UserError(
            f"--generate cannot go with the router {settings.routing.router}: later characters change the routing of "
            "earlier ones, so it cannot route text as it is written."
        )
