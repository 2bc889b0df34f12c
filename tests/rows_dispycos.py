"""Rows of the specification's tables of the cluster's client -> the tests that prove them.

A test checks that these exist.
"""
from __future__ import annotations

_C = "test_dispycos_client."

ROWS = {
    # 11.1 status messages
    "K01 K09": _C + "TurnTest.test_scheduler_is_one",
    "K02 K03 K06 K10 K11 K14 K17 K21 K22 K24 K25": _C + "StatusTest.test_order",
    "K04 K05 K12 K13": _C + "StatusTest.test_suspend_and_resume",
    "K07": _C + "NodesTest.test_node_that_dies",
    "K15": _C + "StatusTest.test_server_that_dies",
    "K18": _C + "TurnTest.test_scheduler_is_one",
    "K19": _C + "TurnTest.test_close_waits_for_cpu_tasks_only " + _C + "StatusTest.test_server_that_dies",
    "K20": _C + "TurnTest.test_close_stops_all",
    "K23": _C + "StatusTest.test_availability",
    # 11.2 records
    "I01 I02 I03": _C + "StatusTest.test_order",
    "I04": _C + "StatusTest.test_availability",
    "I05 I06": _C + "SetupTest.test_rules_choose " + _C + "SetupTest.test_rules_reject",
    # 11.3 scheduler
    "E01": _C + "TurnTest.test_scheduler_is_one",
    "E02 E06": _C + "TurnTest.test_clients_take_turns",
    "E08 Q01 Q05 Q14 Q22 Q23": _C + "SharedSchedulerTest.test_turns",
    "Q21": _C + "SharedSchedulerTest.test_options",
    "X11": _C + "SharedSchedulerTest.test_turns " + _C + "SharedSchedulerTest.test_no_scheduler_there",
    "E03 E04": _C + "JobsTest.test_what_is_in_use",
    "E05": _C + "TurnTest.test_scheduler_closes_the_client",
    "E10 X07 X08 X10": _C + "SetupTest.test_rules_choose " + _C + "SetupTest.test_rules_reject",
    # 11.4 client
    "M01": _C + "ConstructorTest.test_form_of_pycos",
    "M02": _C + "ConstructorTest.test_form_of_the_first_dispycos",
    "M03 X17": _C + "ConstructorTest.test_form_of_discoro",
    "M04": _C + "ConstructorTest.test_what_does_not_fit_is_said",
    "M05": _C + "ConstructorTest.test_components_that_cannot_be " + _C
    + "JobsTest.test_components_are_there_before_jobs",
    "M06 M09": _C + "JobsTest.test_components_are_there_before_jobs " + _C
    + "ConstructorTest.test_callers_list_is_left_alone",
    "M07": _C + "ConstructorTest.test_names_of_files " + _C + "JobsTest.test_components_are_there_before_jobs",
    "M08": _C + "JobsTest.test_components_are_there_before_jobs",
    "M10 X12": _C + "TurnTest.test_clients_take_turns " + _C + "TurnTest.test_client_that_is_terminated_in_the_queue",
    "M11": _C + "JobsTest.test_at_a_place " + _C + "JobsTest.test_what_cannot_run_is_refused",
    "M12 X18": _C + "JobsTest.test_cpu_tasks_have_a_server_each " + _C + "JobsTest.test_waits_for_the_first_node",
    "M13": _C + "JobsTest.test_at_a_place",
    "M14": _C + "JobsTest.test_cpu_tasks_have_a_server_each",
    "M15 M17 X21": _C + "JobsTest.test_results",
    "M16": _C + "JobsTest.test_at_a_place",
    "M18 M19 M20 M21 X20": _C + "JobsTest.test_many_at_once",
    "M22": _C + "JobsTest.test_end_of_a_task",
    "M23": _C + "JobsTest.test_messages_both_ways " + _C + "JobsTest.test_monitor_and_terminate",
    "M24 M25 M26 X22": _C + "JobsTest.test_what_is_in_use",
    "M27 X19": _C + "TurnTest.test_close_waits_for_cpu_tasks_only " + _C + "TurnTest.test_clients_take_turns",
    "M28 X46 V13": _C + "TurnTest.test_close_stops_all",
    "M29": _C + "TurnTest.test_close_waits_for_all",
    "M30 M32 M34 X45": _C + "SetupTest.test_node_setup_with_arguments " + _C + "SetupTest.test_node_setup_that_fails",
    "M31 M33": _C + "SetupTest.test_server_setup_with_arguments " + _C + "SetupTest.test_server_setup_that_fails",
    "M35 M36 M37": _C + "StatusTest.test_suspend_and_resume",
    "M38 M39 M40": _C + "StatusTest.test_closing_servers_and_nodes",
    "M41": _C + "SetupTest.test_node_setup_with_arguments",
    "M42 M46 M47": _C + "StatusTest.test_restart_servers",
    "M43": _C + "SetupTest.test_rules_reject",
    "M45": _C + "ConstructorTest.test_status_task_may_be_set_later",
    "M49": _C + "JobsTest.test_results",
    # 1.3 old names; 20 examples
    "X02 X03 X04 X49": _C + "ProgramTest.test_old_names",
    "dispycos_client1 dispycos_client2 discoro_client1": _C + "ProgramTest.test_example_client",
    "dispycos_client3": _C + "ProgramTest.test_example_messages",
    "dispycos_client7": _C + "ProgramTest.test_example_status",
}
"""Row ids, as in the specification (several share an entry) -> names of tests below `tests`, with blanks between."""
