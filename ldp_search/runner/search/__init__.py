"""The outer search: an Optuna study whose trials are trainings with learned bits.

    python -m ldp_search.run task=digits trials=30 storage=study.journal

Read in this order: outer_space (a search space's `outer:` section -> Optuna's distributions), searched_settings (what of a
run's settings is searched), study (made or found again, its trials counted exactly), worker (which trial is next, and how it
ends), lease (who works on a trial, and how others see that nobody does any more), objective (what a trial is), run_trial (a
trial that is a run of `ldp_search.run`), tune (one that is a function of the user's). Around them: storage and patient_storage
(where a study lies, and waiting for it), samplers, ranks (several processes of one training), dashboard (what optuna-dashboard
shows), best (what comes out), launch (workers as processes of their own), command (from words to exit status). The settings of
a study are those of `config.study`.
"""
