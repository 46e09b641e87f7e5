"""Settings: what wins over what, and what a wrong one says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from restmcts.config import RunConfig, build, dump_yaml, load_config, presets, read_preset
from restmcts.errors import ConfigError
from restmcts.search.settings import SearchSettings


def config_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_later_sources_win(tmp_path):
    path = config_file(tmp_path, "preset: demo\nrounds: 7\nseed: 1\nsearch: {iterations: 9}\n")
    config = load_config(path, flags={"rounds": 8, "seed": None}, overrides=["search.iterations=40", "seed=3"])
    assert config.policy == "embedded"  # the preset
    assert config.rounds == 8  # a flag over the file
    assert config.seed == 3  # --set over everything
    assert config.search.iterations == 40
    assert load_config(path).search.iterations == 9


def test_values_of_overrides_are_yaml():
    config = load_config(
        overrides=[
            "evaluate.methods=[greedy]",
            "fields.question=prompt",
            "policy_training.learning_rate=1e-4",
            "limit=null",
        ]
    )
    assert config.evaluate.methods == ("greedy",)
    assert config.fields == {"question": "prompt"}
    assert config.policy_training.learning_rate == 1e-4
    assert config.limit is None


def test_sections_that_are_unset_follow_their_source():
    config = load_config(
        overrides=["search.iterations=40", "search.alpha=0.25", "evaluate.search.alpha=0.75", "value_training.epochs=7"]
    )
    assert config.evaluate.search.iterations == 40
    assert config.evaluate.search.alpha == 0.75
    assert config.warm_start.value_training.epochs == 7
    assert RunConfig(search=SearchSettings(iterations=41)).evaluate.search.iterations == 41


def test_the_users_own_questions_replace_the_generated_ones():
    config = load_config(preset="demo", flags={"problems": "mine.jsonl"})
    assert config.generate is None
    assert config.problems == "mine.jsonl"
    with pytest.raises(ConfigError, match="either generate, or problems"):
        load_config(preset="demo", overrides=["heldout=x.jsonl"])


@pytest.mark.parametrize("preset", presets())
def test_presets_survive_a_round_trip(preset, tmp_path):
    config = load_config(preset=preset)
    again = load_config(config_file(tmp_path, dump_yaml(config)))
    assert again == config
    assert yaml.safe_load(dump_yaml(config)).keys() == RunConfig.model_fields.keys()


def test_the_demo_preset_ships_and_is_a_whole_run():
    assert read_preset("demo")["policy"] == "embedded"
    load_config(preset="demo").check_complete()


def test_the_paper_preset_is_its_search_and_nothing_else(tmp_path):
    config = load_config(config_file(tmp_path, "preset: paper\nsearch: {iterations: 40}\n"))
    search = config.search
    assert (search.method, search.iterations, search.branch, search.rollout_steps) == ("mcts_star", 40, 3, 2)
    assert (search.self_critic, search.answer_rule, search.threshold) == (True, "best", 0.9)
    assert config.evaluate.search == search
    assert read_preset("paper").keys() == {"search"}


def test_what_a_whole_run_needs():
    with pytest.raises(ConfigError, match="no policy; give --policy"):
        load_config().check_complete()
    with pytest.raises(ConfigError, match="no problems; give --problems"):
        load_config(flags={"policy": "embedded"}).check_complete()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("search.iteration=4", "unknown setting 'search.iteration'; did you mean 'search.iterations'?"),
        ("iterations=4", "unknown setting 'iterations'; did you mean 'search.iterations'?"),
        ("serch.iterations=4", "unknown setting 'serch'; did you mean 'search'?"),
        ("evaluate.search.alpa=1", "unknown setting 'evaluate.search.alpa'; did you mean 'evaluate.search.alpha'?"),
        ("engine.xyz=1", "unknown setting 'engine.xyz'; the settings of engine are: kind, device, "),
        ("search.iterations=0", "search.iterations = 0: it must be greater than or equal to 1"),
        ("search.alpha=1.5", "search.alpha = 1.5: it must be less than or equal to 1"),
        ("search.iterations=many", "search.iterations = 'many': it must be a valid integer, unable to parse"),
        ("search=5", "search = 5: it must be a section, e.g. `search: {iterations: 40}`"),
        ("search=null", "search = None: it must be a section"),
        ("evaluate.methods=[gredy]", "evaluate.methods.0 = 'gredy': it must be 'greedy' or 'search'"),
        ("warm_start.value_training.loss=l1", "warm_start.value_training.loss = 'l1': it must be "),
        ("rounds=-1", "rounds = -1: it must be greater than or equal to 0"),
        ("search.iterations", "--set 'search.iterations' is not name=value; for example --set search.iterations=40"),
        ("=4", "--set '=4' is not name=value"),
        ("seed=[", "--set 'seed=[': the value is not YAML; put quotes around it"),
    ],
)
def test_a_wrong_setting_is_one_line_that_helps(override, said):
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=[override])
    assert str(caught.value).startswith(said)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rounds: 3\nrounds: 4\n", "config.yaml, line 2: not YAML ('rounds' is given twice)"),
        ("rounds: 3\n  seed: 4\n", "config.yaml, line 2: not YAML (mapping values are not allowed here)"),
        ("- 3\n", "config.yaml: settings must be names with values, e.g. `rounds: 2`, not a list"),
        ("preset: dmo\n", "unknown preset 'dmo'; did you mean 'demo'?"),
        ("roudns: 3\n", "unknown setting 'roudns' in "),
        ("3: 4\n", "unknown setting '3' in "),
        ("search: {alpha: 2}\n", "search.alpha = 2: it must be less than or equal to 1"),
        ("x: !!python/object/apply:os.getcwd []\n", "config.yaml, line 1: not YAML (could not determine a constructor"),
    ],
)
def test_a_wrong_file_is_one_line_that_helps(tmp_path, text, said):
    with pytest.raises(ConfigError) as caught:
        load_config(config_file(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"no such config file: .*none\.yaml"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot read config .*: Is a directory"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"cannot read config .*: it is not UTF-8 text"):
        load_config(tmp_path / "binary.yaml")


def test_an_empty_file_is_all_defaults(tmp_path):
    assert load_config(config_file(tmp_path, "# nothing yet\n")) == RunConfig()


def test_settings_of_one_section_alone():
    assert build(SearchSettings, {"iterations": 3}, prefix="search.").iterations == 3
    with pytest.raises(ConfigError, match=r"unknown setting 'search.iteration'; did you mean 'search.iterations'\?"):
        build(SearchSettings, {"iteration": 3}, prefix="search.")


def test_how_a_server_is_asked_is_a_setting_of_the_answers_and_where_it_is_is_not():
    plain = load_config(overrides=["engine.server.base_url=http://127.0.0.1:9/v1", "engine.server.timeout=9"])
    assert plain.prompting() == {"prompt": RunConfig().prompt.model_dump(mode="json")}
    chat = load_config(overrides=["engine.server.ask=chat", "engine.server.tokenizer=embedded"])
    assert chat.prompting() == {**plain.prompting(), "server": {"ask": "chat", "tokenizer": "embedded"}}
