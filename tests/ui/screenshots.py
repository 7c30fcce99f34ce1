"""Pictures of every pane and dialog, light and dark, for eyes: ``python tests/ui/screenshots.py OUT_DIR``."""

from __future__ import annotations

import json
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "ui")]

from PySide6.QtWidgets import QApplication, QWidget  # noqa: E402

from ui.app import App, make_qapp  # noqa: E402
from ui.operations import operations, shutdown  # noqa: E402
from ui.panes import KEYS  # noqa: E402
from ui.settings import Settings  # noqa: E402
from workbench.ids import new_id, now  # noqa: E402
from workbench.judgement import JudgedPair, Judgement  # noqa: E402
from workbench.manifests import seal  # noqa: E402
from workbench.pairs import current_pairs  # noqa: E402
from workbench.project import Project  # noqa: E402
from workbench.protocol import ModelRef, RunSpec, Sample  # noqa: E402
from workbench.recipes import preset  # noqa: E402
from workbench.records import Method, ModelRecord, RunRecord  # noqa: E402
from workbench.rows import PairRow, PromptRow  # noqa: E402
from workbench.run_folder import RunFolder  # noqa: E402
from workbench.sample_project import fill_with_sample  # noqa: E402

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
SIZES = ((1280, 800), (2560, 1440))
Shoot = Callable[[QWidget, str], None]


def make_project(path: Path) -> None:
    """Make the sample project with a base, three trained models and a finished PPO run."""
    with Project.create(path) as project:
        try:
            fill_with_sample(project)
        except Exception as error:  # the sample may not be written yet; pictures are still wanted
            print("no sample:", error)
            import conftest

            conftest.fill(project)
        store = project.store
        folder = path / "base"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
        (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
        sparse(folder / "model.safetensors", 10_000_000)
        base = ModelRecord(new_id(), "smollm2-135m-instruct", "base", str(folder), source="demo", created_at=now())
        store.save_model(base).result()
        parent = base
        made: dict[str, ModelRecord] = {}
        for method, role, name in (
            ("sft", "sft", "sft 1 on smollm2-135m-instruct"),
            ("reward", "reward", "reward 1 on sft 1"),
            ("ppo", "policy", "ppo 1 on sft 1"),
            ("dpo", "policy", "dpo 1 on sft 1"),
        ):
            start = base if method == "sft" else made["sft"]
            run_id = make_run(project, method, name.split(" on ", maxsplit=1)[0], start, base)  # type: ignore[arg-type]
            made[method] = parent = ModelRecord(
                new_id(),
                name,
                role,  # type: ignore[arg-type]
                f"runs/{run_id}/final",
                base_id=base.id,
                parent_id=start.id,
                run_id=run_id,
                step=64,
                created_at=now(),
            )
            store.save_model(parent).result()


def sparse(path: Path, parameters: int) -> None:
    """Write a safetensors file of so many bf16 zeros that takes no room."""
    header = json.dumps({"w": {"dtype": "BF16", "shape": [parameters], "data_offsets": [0, 2 * parameters]}}).encode()
    with path.open("wb") as out:
        out.write(len(header).to_bytes(8, "little") + header)
        out.truncate(8 + len(header) + 2 * parameters)


def make_run(project: Project, method: Method, name: str, start: ModelRecord, base: ModelRecord) -> str:
    """Write a finished run's folder as an engine would have."""
    run_id = new_id()
    prompts = [PromptRow(new_id(), one.messages) for one in project.store.prompts(limit=24)]
    pairs = current_pairs(project.store).rows
    rows, held = (pairs[:-60], pairs[-60:]) if method == "reward" else (prompts, prompts[:4])
    ref = ModelRef(model_id=start.id, name=start.name, base=base.path)
    spec = RunSpec(
        run_id=run_id,
        method=method,
        name=name,
        recipe=_fields(method),
        model=ref,
        versions={"torch": "2.13.0", "peft": "0.21.2"},
        created_at=now(),
    )
    folder = RunFolder.create(project.runs_dir, spec, rows, held)
    chance = random.Random(method)
    lines: list[dict[str, object]] = [{"type": "started", "pid": 1, "device": "cpu", "total_steps": 64}]
    samples: list[bytes] = []
    for step in range(1, 65):
        noise, t = chance.gauss(0, 1), step / 64
        values: dict[str, float] = {
            "grad_norm": 1.2 + 0.2 * noise,
            "learning_rate": 2e-4 * (1 - t),
            "perf/tokens_per_s": 230 + 12 * noise,
            "perf/memory_bytes": 1.1e9 + 2e6 * step,
            "num_tokens": 900.0 * step,
            "epoch": 3 * t,
        }
        if method == "ppo":
            values |= {
                "objective/scores": 1.8 * (1 - math.exp(-2.5 * t)) + 0.12 * noise,
                "objective/kl": 9 * t * t + 0.3 * abs(noise),
                "objective/rlhf_reward": 1.8 * (1 - math.exp(-2.5 * t)) - 0.4 * t,
                "objective/non_score_reward": -0.45 * t * t,
                "objective/entropy": 60 - 18 * t + noise,
                "policy/clipfrac_avg": 0.06 + 0.01 * noise,
                "policy/approxkl_avg": 0.01 + 0.002 * abs(noise),
                "loss/policy_avg": -0.02 + 0.01 * noise,
                "loss/value_avg": 0.4 * math.exp(-2 * t) + 0.02 * abs(noise),
                "ppo/mean_length": 34 + 10 * t + noise,
                "ppo/kl_coefficient": 0.05,
                "ppo/ratio_first": 1.0,
                "val/ratio": 1.0 + 0.01 * noise,
            }
            if step % 8 == 0:
                gain = 1.3 * (1 - math.exp(-2 * t))
                values |= {"eval_objective/scores": 0.1 + gain, "eval_objective/scores_gain": gain}
                values |= {
                    f"eval_objective/scores_gain_{end}": gain + way for end, way in (("low", -0.4), ("high", 0.4))
                }
        else:
            values |= {"loss": (0.69 if method != "sft" else 2.1) * math.exp(-0.8 * t) + 0.03 * noise}
            if step % 8 == 0:
                values |= {"eval_loss": (0.69 if method != "sft" else 2.1) * math.exp(-0.6 * t)}
        if method == "reward":
            values |= {"accuracy": 0.5 + 0.3 * t + 0.02 * noise, "margin": 1.4 * t + 0.1 * noise}
            if step % 8 == 0:
                values |= {"eval_accuracy": 0.5 + 0.2 * t, "eval_accuracy_low": 0.4 + 0.2 * t}
                values |= {"eval_accuracy_high": 0.6 + 0.2 * t, "eval_ece": 0.2 - 0.1 * t}
        if method == "dpo":
            values |= {"rewards/accuracies": 0.5 + 0.35 * t, "rewards/margins": 0.8 * t + 0.05 * noise}
        lines.append({"type": "progress", "step": step, "total_steps": 64, "eta_s": 4.0 * (64 - step)})
        lines.append({"type": "metrics", "step": step, "values": values})
        if method == "ppo" and step % 8 == 0:
            start_at, batch = sum(map(len, samples)), [_sample(step, row, chance) for row in prompts[:6]]
            samples += batch
            lines.append({"type": "samples", "step": step, "offset": start_at, "count": len(batch)})
    lines.append({"type": "ended", "state": "done", "step": 64})
    stamped = [one | {"seq": seq, "at": now(), "elapsed_s": 2.0 * seq} for seq, one in enumerate(lines)]
    (folder.path / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in stamped), encoding="utf-8")
    (folder.path / "samples.jsonl").write_bytes(b"".join(samples))
    (folder.path / "exit.json").write_text(json.dumps({"code": 0, "peak_rss_bytes": 1_300_000_000, "ended_at": now()}))
    final = folder.path / "final"
    final.mkdir()
    (final / "adapter_config.json").write_text("{}", encoding="utf-8")
    (final / "adapter_model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    if method == "reward":
        Judgement(step=64, pairs=tuple(_judged(one, chance) for one in pairs[-60:])).write(final)
    seal(final, kind="final", run_id=run_id, method=method, step=64, base_name=base.name)
    record = RunRecord(run_id, method, name, "done", start.id, created_at=now(), ended_at=now())
    project.store.save_run(record).result()
    return run_id


def _fields(method: Method) -> dict[str, object]:
    import dataclasses

    return dataclasses.asdict(preset(method, "Balanced", 40, 135_000_000))


def _sample(step: int, row: PromptRow, chance: random.Random) -> bytes:
    from workbench.jsonl import encode

    words = ("It", "depends", "on", "what", "you", "need.", "Start", "small,", "check", "the", "result,", "go", "on.")
    count = len(words)
    kl = tuple(abs(chance.gauss(0.05, 0.1)) for _ in range(count))
    sample = Sample(
        step=step,
        prompt_id=row.id,
        prompt=row.prompt[-1].content,
        response=" ".join(words),
        score=1.5 * step / 64 + chance.gauss(0, 0.3),
        kl=sum(kl),
        tokens=tuple(f" {word}" for word in words),
        token_logps=tuple(-abs(chance.gauss(0.6, 0.5)) for _ in range(count)),
        token_kl=kl,
        token_rewards=(*(-0.05 * one for one in kl[:-1]), 1.2),
        token_values=tuple(chance.gauss(0.5, 0.2) for _ in range(count)),
        token_advantages=tuple(chance.gauss(0, 1) for _ in range(count)),
    )
    return encode(sample) + b"\n"


def _judged(row: PairRow, chance: random.Random) -> JudgedPair:
    length = (len(row.chosen) - len(row.rejected)) // 4
    gap = chance.gauss(0.7 * row.tier_distance, 1.1) + 0.004 * length
    return JudgedPair(row.id, row.ranking_id, gap, row.tier_distance, length, row.rater_id, group=row.group)


def settle(seconds: float = 0.4, limit: float = 20.0) -> None:
    """Let the window do what it has to do, and some time more."""
    until, quiet = time.monotonic() + limit, 0.0
    while time.monotonic() < until:
        QApplication.processEvents()
        time.sleep(0.005)
        quiet = quiet + 0.005 if operations().pending == 0 else 0.0
        if quiet >= seconds:
            return


def main(out: Path, only: tuple[str, ...] = ()) -> int:
    """Save the pictures. Returns 0."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        for name in ("CACHE", "RUNTIME", "CONFIG"):
            os.environ[f"TASTEMAKER_{name}"] = f"{place}/{name.lower()}"
        path = Path(place) / "My taste"
        make_project(path)
        app = App(make_qapp(), Settings(None))
        app.window.show()
        settle()

        def shoot(widget: QWidget, name: str) -> None:
            if only and not any(word in name for word in only):
                return
            widget.grab().save(str(out / f"{name}.png"))

        for mode in ("light", "dark"):
            app.theme.set_mode(mode)  # type: ignore[arg-type]
            app.window.resize(*SIZES[0])
            settle()
            if app.session is None:
                shoot(app.window, f"welcome-{mode}")
                app.open(path)
                settle(0.8)
            for width, height in SIZES:
                app.window.resize(width, height)
                for key in KEYS:
                    app.window.show_pane(key)
                    settle()
                    shoot(app.window, f"{key}-{mode}-{width}")
            judgement(app, mode, shoot)
            consistency(app, mode, shoot)
            app.window.resize(*SIZES[0])
            app.window.show_pane("home")
            app.window.explain("ppo", {"objective/scores": 1.42, "objective/kl": 4.31})
            settle()
            shoot(app.window, f"explain-{mode}")
            app.window.drawer.close_drawer()
            dialogs(app, path, mode, shoot)
        app.window.resize(820, 600)
        settle()
        shoot(app.window, "narrow")
        app.window.close()
        shutdown()
    return 0


def judgement(app: App, mode: str, shoot: Shoot) -> None:
    """Show what the reward model is worth."""
    assert app.session is not None
    reward = next(one for one in app.session.project.store.runs() if one.method == "reward")
    app.window.show_pane("runs", run_id=reward.id)
    settle()
    view = app.window.pane("runs").view  # type: ignore[attr-defined]
    view.tabs.setCurrentWidget(view.judgement)
    for width, height in SIZES:
        app.window.resize(width, height)
        settle()
        shoot(app.window, f"judgement-{mode}-{width}")
    view.tabs.setCurrentWidget(view.data)
    for width, height in SIZES:
        app.window.resize(width, height)
        settle()
        shoot(app.window, f"data-{mode}-{width}")
    view.tabs.setCurrentIndex(0)


def consistency(app: App, mode: str, shoot: Shoot) -> None:
    """Show how consistent the labels are."""
    app.window.show_pane("rank")
    for width, height in SIZES:
        app.window.resize(width, height)
        settle()
        app.window.pane("rank").open_consistency()  # type: ignore[attr-defined]
        settle()
        dialog = QApplication.activeModalWidget()
        if dialog is not None:
            shoot(dialog, f"consistency-{mode}-{width}")
            dialog.close()
    settle(0.1)


def dialogs(app: App, path: Path, mode: str, shoot: Shoot) -> None:
    """Open each dialog for a picture."""
    sample = path.parent / "friends.jsonl"
    rows = [
        {"prompt": f"What is {n} + {n}?", "chosen": f"{2 * n}.", "rejected": f"Well, {n} plus {n}…"} for n in range(9)
    ]
    sample.write_text("\n".join(json.dumps(row) for row in rows) + '\n{"prompt": "half"\n{"prompt": 3}\n')
    deeds = {
        "import": lambda: app.ask_import(sample),
        "export": app.ask_export,
        "new": lambda: app.ask_new(sample=False),
        "glossary": app.show_glossary,
        "keys": app.show_keys,
        "restore": app.ask_restore,
        "add-model": lambda: app.window.pane("models").ask_add(),  # type: ignore[attr-defined]
        "error": lambda: app.show_error(ValueError("a bug, for the picture")),
    }
    for name, deed in deeds.items():
        deed()
        settle()
        dialog = QApplication.activeModalWidget() or next(
            (one for one in app.window.children() if isinstance(one, QWidget) and one.isWindow() and one.isVisible()),
            None,
        )
        if isinstance(dialog, QWidget):
            shoot(dialog, f"dialog-{name}-{mode}")
            dialog.close()
        settle(0.1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "screenshots"), tuple(sys.argv[2:])))
