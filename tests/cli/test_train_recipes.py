"""`--recipe`, `avarc train recipes`, and the options that recipes are made of."""

import json
from pathlib import Path

import pytest
import safetensors
import torch
import typer
from conftest import GOLDEN
from golden import fill
from small_datasets import halves

from avarc_cli import families, recipes
from avarc_cli.cli import app, main
from avarc_cli.commands import _recipe_options as options
from avarc_cli.train import checkpoint_file, generator
from avarc_cli.zoo import published

IMAGENET = 1_281_167
COMMANDS = typer.main.get_command(app).commands["train"].commands
OPTIONS = {
    "tokenizer": options.VQVAERecipeOptions,
    "vq": options.TokenizerRecipeOptions,
    "maskgit-vq": options.TokenizerRecipeOptions,
    "titok": options.TokenizerRecipeOptions,
    "tatitok": options.TokenizerRecipeOptions,
    "var": options.ScalesOptions,
    "llamagen": options.DropoutOptions,
    "llamagen-t2i": options.DropoutOptions,
    "randar": options.SkippingOptions,
    "rar": options.OrdersOptions,
    "maskgit": options.MaskGITOptions,
    "maskgen": options.HiddenOptions,
}
VQ = ["--image-size", "8", "--patch-nums", "1,2,4", "--vocab", "16", "--channels", "4", "--width", "32"]
VQ += ["--multipliers", "1,1", "--blocks", "1", "--batch-size", "8", "--steps", "1"]
TINY = ["--depth", "1", "--width", "64", "--batch-size", "8", "--precision", "fp32"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with 16 training images in img/ and a tokenizer in vq.st."""
    folder = tmp_path_factory.mktemp("recipes")
    halves(folder / "img", 16)
    assert main(["train", "tokenizer", str(folder / "img"), *VQ, "--out", str(folder / "vq.st")]) == 0
    return folder


@pytest.fixture
def asked(folder, monkeypatch):
    """Runs `avarc train`, and returns the recipe and the keywords that the training of a generator is called with."""
    monkeypatch.chdir(folder)
    calls = []
    monkeypatch.setattr(generator, "train_generator", lambda *given, **how: calls.append((given, how)))

    def run(*words):
        assert main(["train", *words]) == 0
        (_, _, _, shape, recipe), how = calls.pop()
        return recipe, {**how, "shape": shape}

    return run


@pytest.fixture
def toml(folder):
    def write(text, name="mine.toml"):
        (folder / name).write_text(text)
        return name

    return write


def of(name, **more):
    """The recipe of that name on ImageNet, by the options of its command."""
    found = recipes.find(name)
    kind = OPTIONS[found.command]
    values = {key.replace("-", "_"): value for key, value in found.values.items()}
    return kind(**{k: v for k, v in values.items() if k in kind.__dataclass_fields__} | more).recipe(IMAGENET)


@pytest.mark.parametrize("name", recipes.included())
def test_every_value_is_an_option_of_the_command_and_has_a_source(name, capsys):
    found = recipes.find(name)
    assert found.about and set(found.sources) == set(found.values)
    if found.command in COMMANDS:
        assert main(["train", "--recipe", name, "--help"]) == 0, capsys.readouterr().err
        assert f"avarc train {found.command}" in capsys.readouterr().out
        assert of(name).steps >= 1


# Of the published trainings: steps, batch, peak rate, betas, weight decay, clip, average of the weights.
PUBLISHED = {
    "var-d16": (333_638, 768, 3e-4, (0.9, 0.95), 0.05, 2.0, None),
    "var-d20": (417_047, 768, 3e-4, (0.9, 0.95), 0.05, 2.0, None),
    "var-d24": (583_866, 768, 2.4e-4, (0.9, 0.95), 0.05, 2.0, None),
    "var-d30": (437_899, 1024, 3.2e-4, (0.9, 0.95), 0.05, 2.0, None),
    "var-d36": (583_866, 768, 2.4e-4, (0.9, 0.95), 0.05, 2.0, None),
    "llamagen-3b": (1_501_368, 256, 1e-4, (0.9, 0.95), 0.05, 1.0, None),
    "randar-xl": (360_000, 1024, 4e-4, (0.9, 0.95), 0.05, 1.0, None),
    "rar-xxl": (250_000, 2048, 4e-4, (0.9, 0.96), 0.03, 1.0, None),
    "maskgit-s128": (500_000, 2048, 2e-4, (0.9, 0.96), 0.03, 1.0, 0.999),
    "maskgit-l32": (500_000, 2048, 2e-4, (0.9, 0.96), 0.03, 1.0, 0.999),
    "titok-l32": (1_000_000, 256, 1e-4, (0.9, 0.99), 1e-4, 1.0, 0.999),
    "titok-stage2": (500_000, 256, 1e-4, (0.9, 0.999), 1e-4, 1.0, 0.999),
    "titok-bl64": (650_000, 256, 1e-4, (0.9, 0.999), 1e-4, 1.0, 0.999),
    "titok-ll32-vae": (650_000, 256, 1e-4, (0.9, 0.999), 1e-4, 1.0, 0.999),
    "tatitok-sl128-vae": (650_000, 256, 1e-4, (0.9, 0.999), 1e-4, 1.0, 0.999),
    "maskgen-vq-xl": (500_000, 128, 4e-4, (0.9, 0.96), 0.03, 1.0, 0.999),
    "maskgen-vq-stage2": (250_000, 128, 1e-4, (0.9, 0.96), 0.03, 1.0, 0.999),
    "maskgen-kl-l": (1_000_000, 32, 1e-4, (0.9, 0.95), 0.02, 1.0, 0.999),
    "maskgen-kl-stage2": (500_000, 32, 1e-4, (0.9, 0.95), 0.02, 1.0, 0.999),
    "llamagen-vq16": (400_365, 128, 1e-4, (0.9, 0.95), 0.0, 1.0, None),
    "llamagen-vq16-t2i": (400_365, 128, 1e-4, (0.9, 0.95), 0.0, 1.0, None),
    "var-vqvae": (417_047, 768, 3e-4, (0.5, 0.9), 0.005, 10.0, 0.9999),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_numbers_are_the_published_ones(name):
    recipe = of(name)
    steps, batch_size, lr, *others = PUBLISHED[name]
    assert (recipe.steps, recipe.batch_size, recipe.lr) == (steps, batch_size, pytest.approx(lr))
    assert [recipe.betas, recipe.weight_decay, recipe.clip, recipe.ema_decay] == others
    assert recipe.decayed == "published" or not recipe.weight_decay


# Warm-up in steps, first and last rate over the peak.
SCHEDULES = {
    "var-d16": (6672.76, 0.005, 0.1),
    "var-d30": (8758, 0.005, 0.01),
    "randar-l": (50_000, 0, 0.05),
    "rar-b": (62_500, 0, 0.025),
    "maskgit": (10_000, 0, 0.05),
    "titok": (10_000, 0, 0.1),
    "titok-stage2": (5_000, 0, 0.1),
    "titok-single": (10_000, 0, 0.1),
    "titok-vae": (10_000, 0, 0.1),
    "llamagen": (0, 1, 1),
    "tatitok": (10_000, 0, 0.1),
    "maskgen-vq": (10_000, 0, 0.025),
    "maskgen-vq-stage2": (10_000, 0, 0.1),
    "maskgen-kl": (50_000, 0, 1),
    "maskgen-kl-stage2": (50_000, 0, 1),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_learning_rates_rise_and_end_as_published(name):
    recipe, (warmup, first, last) = of(name), SCHEDULES[name]
    assert recipe.warmup * recipe.steps == pytest.approx(warmup, rel=1e-5)
    assert recipe.rate(0) == pytest.approx(first * recipe.lr)
    assert recipe.rate(round(warmup)) == pytest.approx(recipe.lr)
    assert recipe.rate(recipe.steps - 1) == pytest.approx(last * recipe.lr, rel=1e-5)


def test_vars_rates_are_those_of_its_own_code():
    meta, arrays = fill.load_golden(GOLDEN / "train_step_schedules_tiny.npz")
    theirs = meta["config"]["var"]  # the last rate of d24 and d30, the weight decay of d30
    recipe = of("var-d30", epochs=None, steps=theirs["total"], warmup=theirs["warmup"])
    row, steps = theirs["names"].index(recipe.schedule), arrays["var_steps"].tolist()
    assert [recipe.rate(step) / recipe.lr for step in steps] == pytest.approx(arrays["var_lr"][row], abs=1e-9)
    assert [recipe.decay(step) for step in steps] == pytest.approx(arrays["var_wd"], abs=1e-9)


def test_what_is_not_given_is_as_it_was():
    small = options.ScalesOptions(steps=10).recipe(5)
    assert set(small.identity()) == {
        *"steps batch_size lr warmup hold final weight_decay betas clip ema_decay save_every seed".split()
    }
    tokenizer = options.TokenizerRecipeOptions().recipe(5)
    assert (tokenizer.weight_decay, tokenizer.betas) == (0.01, (0.9, 0.99))
    assert options.FineTuningOptions().recipe(5).weight_decay == 0


def test_the_recipe_names_its_command_and_options_win_over_it(asked, toml):
    words = ["img", "--tokenizer", "vq.st", "--out", "x.st"]
    for call in (["--recipe", "var-d16", *words], ["var", "--recipe=var-d16", *words], [*words, "--recipe", "var-d16"]):
        recipe, how = asked(*call)
        assert how["shape"] == {"depth": 16, "width": 1024, "shared_aln": False, "gates": 1e-3}
        assert recipe.steps == 5  # 200 epochs of 16 images
        assert (recipe.lr, recipe.drop_path) == pytest.approx((3e-4, 0.1 * 16 / 24))
        assert str(how["augment"]).endswith("shorter side (1.125, 1.125)") and how["run"].precision == "fp16"
    config = toml("recipe = 'nonsense'\n[train]\nlr = 1e-3\nwidth = 128\nsteps = 7\n[train.var]\ndepth = 2")
    recipe, how = asked("var", *words, "--config", config, "--recipe", "var-d16", "--depth", "3", "--batch-size", "16")
    assert how["shape"] == {"depth": 3, "width": 128, "shared_aln": False, "gates": 1e-3}
    assert (recipe.steps, recipe.lr, recipe.final) == (7, pytest.approx(1e-3 * 16 / 256), 0.1)


def test_steps_and_epochs_replace_each_other(asked, toml):
    words = ["var", "img", "--tokenizer", "vq.st", "--out", "x.st", "--batch-size", "8"]
    assert asked(*words, "--epochs", "3")[0].steps == 6  # of 16 images
    assert asked(*words, "--epochs", "0.1")[0].steps == 1
    assert asked(*words, "--recipe", "var-d16", "--steps", "9")[0].steps == 9
    assert asked(*words, "--epochs", "4", "--config", toml("steps = 9"))[0].steps == 8
    assert asked(*words, "--recipe", "var-d16", "--config", toml("steps = 9"))[0].steps == 9
    assert asked(*words, "--hold-out", "0.5", "--epochs", "4")[0].steps == 4


def test_a_file_may_extend_a_recipe_and_a_config_may_name_it(asked, toml):
    toml("extends = 'var-d20'\n[train.var]\nsteps = 3\ndrop_path = 0", "mine.toml")
    words = ["img", "--tokenizer", "vq.st", "--out", "x.st"]
    recipe, how = asked("--recipe", "mine.toml", *words)
    assert (recipe.steps, recipe.drop_path, recipe.final, how["shape"]["depth"]) == (3, 0, 0.1, 20)
    toml("recipe = 'mine.toml'\ndepth = 5", "config.toml")
    recipe, how = asked("var", *words, "--config", "config.toml")
    assert (recipe.steps, how["shape"]["depth"], how["shape"]["width"]) == (3, 5, 1280)


@pytest.mark.parametrize(
    ("words", "text", "says"),
    [
        (["--recipe", "var-d61"], "", "there is no recipe 'var-d61'\n  fix: did you mean "),
        (["--recipe", "nonsense"], "", "avarc train recipes lists those that are included"),
        (["--recipe"], "", "there is no recipe ''"),
        (["llamagen", "--recipe", "var-d16"], "", "the recipe 'var-d16' is for avarc train var"),
        (["--recipe", "mine.toml"], "[train.vra]\ndepth = 3", "is for avarc train vra\n  why: the commands are"),
        (["--recipe", "nowhere.toml"], "", "'nowhere.toml' does not exist"),
        (["--recipe", "mine.toml"], "[train.var]\ndetph = 3", "did you mean depth or"),
        (["--recipe", "mine.toml"], "[train.var]\ndropout = 0.1", "train var has no such option"),
        (["--recipe", "mine.toml"], "[train.var]\ndepth = 'deep'", "depth is 'deep'\n  why: it must be a whole number"),
        (["--recipe", "mine.toml"], "[train.var]\nsteps = 3\nepochs = 3", "has steps and epochs"),
        (["--recipe", "mine.toml"], "depth = 3", "has 'depth' outside of a table"),
        (["--recipe", "mine.toml"], "about = 'nothing'", "'mine.toml' is not a recipe"),
        (["--recipe", "mine.toml"], "[train.var]\na = 1\n[train.rar]\na = 1", "'mine.toml' is not a recipe"),
        (["--recipe", "mine.toml"], "extends = 'mine.toml'\n[train.var]", "extends too many recipes"),
        (["--recipe", "mine.toml"], "extends = 'rar-b'\n[train.var]", "extends a recipe of another command"),
        (["--recipe", "mine.toml"], "extends = 3\n[train.var]", "extends is 3"),
        (["--recipe", "mine.toml"], "[train.var", "is not a TOML file"),
        (["var", "--steps", "3", "--epochs", "3"], "", "--steps and --epochs cannot be used together"),
        (["var", "--epochs", "3", "--steps", "3"], "", "--steps and --epochs cannot be used together"),
        (["var", "--epochs", "0"], "", "--epochs is 0"),
        (["var", "--schedule", "linear"], "", "no learning-rate schedule 'linear'"),
        (["var", "--betas", "0.9"], "", "cannot read --betas '0.9'"),
        (["var", "--betas", "0.9,1"], "", "betas are (0.9, 1.0)"),
        (["var", "--decayed", "all"], "", "decayed is 'all'"),
        (["var", "--drop-path", "1"], "", "drop_path is 1"),
        (["var", "--clip", "-1"], "", "clip is -1"),
        (["var", "--ema-decay", "1"], "", "ema_decay is 1"),
        (["var", "--gates", "2"], "", "--gates is 2"),
        (["var", "--short-side", "0.5,1"], "", "--short-side is 0.5,1"),
        (["var", "--progressive", "0.5", "--progressive-first", "3"], "", "the model has 3 scales"),
        (["rar", "--anneal", "0.8,0.5"], "", "anneal is (0.8, 0.5)"),
        (["tokenizer", "--initialization", "other"], "", "no initialization 'other'"),
        (["tokenizer", "--discriminator-lr", "1"], "", "no use for --discriminator-lr"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(folder, toml, monkeypatch, capsys, words, text, says):
    monkeypatch.chdir(folder)
    toml(text)
    command, rest = (words[:1], words[1:]) if words[0] in COMMANDS else ([], words)
    reads = [] if words[0] == "tokenizer" else ["--tokenizer", "vq.st"]
    last = rest if rest[-1:] == ["--recipe"] else []  # the name is missing
    given = ["--depth", "1", "--width", "64"] if words[0] == "var" else []
    line = ["train", *command, *([] if last else rest), "img", *reads, *given, "--out", "x.st", *last]
    assert main(line) == 2
    err = capsys.readouterr().err
    assert says in err and "Traceback" not in err and not Path("x.st").exists()


def test_a_small_training_by_a_recipe(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    line = ["train", "--recipe", "var-d16", "img", "--tokenizer", "vq.st", *TINY, "--out", "d16.st"]
    assert main(["--json", *line, "--steps", "3", "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["tokens"], found["steps"], found["epochs"]) == (16, 16 * 21, 3, 1.5)
    with monkeypatch.context() as patch:
        patch.setattr("avarc_cli.train.loop.discard", lambda file: None)
        assert main([*line, "--epochs", "2", "--save-every", "2"]) == 0
    stated = checkpoint_file.read(folder / "d16.st.ckpt")[0]["identity"]
    said = {key: stated[key] for key in ("steps", "schedule", "decayed", "ema_decay", "lr", "final")}
    assert said == {
        "steps": 4,
        "schedule": "lin0",
        "decayed": "published",
        "ema_decay": None,
        "lr": 1e-4 / 32,
        "final": 0.1,
    }
    assert "shorter side (1.125, 1.125)" in stated["subject"]["augmentation"]
    capsys.readouterr()
    assert main([*line, "--epochs", "2", "--save-every", "2", "--final", "0.2"]) == 1
    assert "final" in capsys.readouterr().err
    with safetensors.safe_open(folder / "d16.st", "pt") as file:
        assert "blocks.0.attn.mat_qkv.weight" in file.keys()  # noqa: SIM118  # a handle, no dict


def test_the_recipe_of_a_tokenizer_trains_one(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    small = [*VQ, "--epochs", "1", "--steps", "2"]
    del small[-4:-2]
    for name, out in (("var-vqvae", "v.st"), ("llamagen-vq16", "l.st")):
        own = small if name == "var-vqvae" else [w for w in small if w not in ("--patch-nums", "1,2,4")]
        assert main(["train", "--recipe", name, "img", *own, "--precision", "fp32", "--out", out]) == 0
    err = capsys.readouterr().err
    assert "the published loss is trained without LPIPS" in err and (folder / "l.st").exists()


def test_the_list_of_recipes(capsys):
    assert main(["--quiet", "train", "recipes"]) == 0
    assert set(capsys.readouterr().out.split()) == set(recipes.included())
    assert main(["--json", "train", "recipes", "var-d30"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["command"] == "var" and shown["values"]["final-weight-decay"] == 0.08
    assert main(["train", "recipes", "nonsense"]) == 2


def test_recipes_of_one_stage_are_as_before_they_had_vaes_beside_them():
    of_codes = {"vocab": 8192, "channels": 64, "revive": False, "reanchor": True}
    single, shared = recipes.find("titok-single").values, recipes.find("titok-pixels").values
    assert single == {**shared, **of_codes}
    assert recipes.find("titok-vae").values == {**shared, "vae": True, "channels": 16}


def test_the_shapes_of_the_new_recipes_are_those_of_the_published_files():
    cards = {card.name: card for card in published.TOKENIZERS}
    for size in ("ll32", "bl64", "bl128"):
        values = recipes.find(f"titok-{size}-vae").values
        card = cards[f"titok-{size}-vae"]
        assert (values["tokens"], values["channels"]) == (card.layout.num_tokens, card.channels)
        shape = {"patch": 16, "num_tokens": values["tokens"], "vocab_size": 0, "code_channels": values["channels"]}
        shape |= {key.replace("-", "_"): values[key] for key in ("width", "depth", "decoder-width", "decoder-depth")}
        with torch.device("meta"):
            network = families.TOKENIZERS.get("titok").new(image_size=256, **shape)
        assert sum(p.numel() for p in network.parameters()) == card.params
