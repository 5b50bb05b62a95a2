"""`diffreg train --resume` says where it begins."""

from test_trainer import save_images

from diffreg.cli.main import main


def test_resume_says_that_there_is_nothing_to_go_on_with(tmp_path, monkeypatch, capsys):
    """A misspelt training.out would begin anew without a word."""
    monkeypatch.chdir(tmp_path)
    save_images(tmp_path / "images")
    (tmp_path / "a.toml").write_text(
        "[data]\nimages = 'images'\n[model]\nwidths = [2, 4]\n"
        "[training]\nsteps = 1\nbatch_size = 2\nthreads = 1\ndevice = 'cpu'\n"
    )
    for steps, said in ((1, True), (2, False)):
        assert main(["train", "a.toml", "--resume", f"training.steps={steps}"]) == 0
        assert ("run has no checkpoint: the run begins anew" in capsys.readouterr().err) == said
