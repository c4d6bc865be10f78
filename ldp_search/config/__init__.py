"""What a run is asked for: its settings, the words and files they come from, and their checks. Nothing here runs anything.

settings    the fields of a run, with their defaults and rules; `Settings`, all of them resolved
study       the fields of a search
resolve     from words to Settings: the one way in
overlay     KEY=VALUE words, and laying one set of settings over another
typed       a value of a file or a word, as the type of its field
program     options of the programs beside `run`, and how they end
task_file   a task's YAML file
presets     the shipped YAML files, by name

What may live here: whatever decides what is asked for, on `core` alone. What carries it out is in `runner`.
"""
