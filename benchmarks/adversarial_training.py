"""Images per second of one PGD-10 training step of ResNet-20: this library's loop against a plain one.

    python benchmarks/adversarial_training.py [--batch 128] [--repeats 3] [--depth 20] [--width 16]

The plain loop is what a first release usually has: float32, NCHW, and an attack that calls `backward()` and so computes
weight gradients it throws away. Both run in turn, in this one process; the ratio is the result, not the times.
"""

import argparse
import statistics
import time

import torch
from torch.nn.functional import cross_entropy

import sparserobust as sr
from sparserobust import provenance, seeding, training
from sparserobust.config import Run
from sparserobust.data import Split, Splits

EPSILON, STEP, STEPS = 8 / 255, 2 / 255, 10


def library_step(model, images, labels):
    """A closure that does one training step as `sparserobust.training` does it, of a network with these settings."""
    run = Run(data=sr.Data(name="cifar10"), model=model, recipe=sr.Recipe(epochs=1),
              objective=sr.objectives.Adversarial(attack=sr.attacks.PGD(epsilon=EPSILON, step_size=STEP, steps=STEPS)))
    split = Split(images, labels)
    net = training.build(run, Splits(split, split, split, tuple("0123456789")))
    layout = training.fastest_layout(net, images.device)
    net = net.to(images.device, memory_format=layout).train()
    job = training.TrainingState(run, net, ())
    attack = seeding.stream(0, "attack", device=images.device)
    batch = images.contiguous(memory_format=layout)
    return lambda: job.step(run.objective, batch, labels, attack, 0.1)


def plain_step(model, images, labels):
    """A closure that does the same step plainly."""
    net = model.build((3, 32, 32), 10).to(images.device).train()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step():
        x = (images + EPSILON * (2 * torch.rand_like(images) - 1)).clamp(0, 1)
        for _ in range(STEPS):
            x.requires_grad_(True)
            cross_entropy(net(x), labels).backward()
            x = (x + STEP * x.grad.sign()).detach()
            x = torch.maximum(torch.minimum(x, images + EPSILON), images - EPSILON).clamp(0, 1)
        optimiser.zero_grad()
        cross_entropy(net(x), labels).backward()
        optimiser.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--width", type=int, default=16)
    chosen = parser.parse_args()
    device = provenance.device()
    images = torch.rand(chosen.batch, 3, 32, 32, device=device)
    labels = torch.randint(10, (chosen.batch,), device=device)
    model = sr.models.PreActResNet(depth=chosen.depth, width=chosen.width)
    steps = {"library": library_step(model, images, labels), "plain": plain_step(model, images, labels)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(chosen.repeats + 1):  # the first round warms up
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                seconds[name].append(time.perf_counter() - begun)
    print(provenance.summary())
    bfloat16 = "bfloat16" if provenance.has_bfloat16(device.type) else "float32 (no bfloat16 in hardware)"
    for name, what in (("library", f"channels_last, {bfloat16}, no weight gradients in the attack"),
                       ("plain", "NCHW, float32, weight gradients left on")):
        print(f"{name:8s} {chosen.batch / statistics.median(seconds[name]):8.1f} images/s   {what}")
    ratios = [p / q for p, q in zip(seconds["plain"], seconds["library"], strict=True)]
    print(f"ratio    {statistics.median(ratios):8.2f}           "
          f"({min(ratios):.2f} to {max(ratios):.2f} over {chosen.repeats} pairs)")


if __name__ == "__main__":
    main()
