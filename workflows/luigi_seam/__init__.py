"""Every touch of Luigi's private parts, each with its reason; nothing else in the package has one.

===========  =====================================================  ===============================
module       private part of Luigi                                  reason
===========  =====================================================  ===============================
worker       `interface._WorkerSchedulerFactory` is replaced;       steps run on threads: a process
             `Worker._create_task_process`, `_get_work`,            a task costs 9 ms, which is more
             `__exit__`, `_task_result_queue`, `_scheduled_tasks`,  than the work of a small key
             `_add_task` and `_id` are used by a subclass
retries      (through worker)                                       luigid keeps a failure red for
                                                                    a day; the run itself retries
outcomes     `execution_summary._summary_dict`,                     the last words of a run name a
             `Worker._add_task_history`, `_scheduler`               task that is no step
install      `Parameter._default`, `_value_iterator`,               plain `luigi` fails with a code,
             `parameter._no_value`                                  as with our luigi.cfg
setting      `Parameter._default`                                   settings are read when a run
                                                                    begins, not at import
commandline  `CmdlineParser`, `Register._reg`,                      verbs take a task's parameters
             `Task._visible_in_registry`                            as `luigi` does; names of a
                                                                    user's steps win
console      the texts of Luigi's own messages                      each error once, with a remedy
===========  =====================================================  ===============================

Tried with Luigi 3.8.0 and 3.8.1, the oldest and the newest that are allowed.
"""
