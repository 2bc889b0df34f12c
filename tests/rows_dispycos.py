"""Rows of the specification's tables of the cluster's client -> the tests that prove them.

A test checks that these exist.
"""
from __future__ import annotations

_C = "test_dispycos_client."
_P = "test_dispycos_patience."
_O = "test_node_options."
_N = "test_node_program."

ROWS = {
    # 11.1 status messages
    "K01 K09": _C + "TurnTest.test_scheduler_is_one",
    "K02 K03 K06 K10 K11 K14 K17 K21 K22 K24 K25": _C + "StatusTest.test_order",
    "K04 K05 K12 K13": _C + "StatusTest.test_suspend_and_resume",
    "K07": _C + "NodesTest.test_node_that_dies",
    "K08 K16 M44 V11": _P + "SilentTest.test_a_node_is_abandoned_after_its_time_and_only_if_that_is_wanted " + _P
    + "RealTest.test_a_node_that_is_silent_is_abandoned_and_reclaimed_when_it_is_heard",
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
    "M48 O19 O20": _C + "StatusTest.test_availability " + _P + "PulseTest.test_a_node_that_may_not_be_asked_so_often",
    "M49": _C + "JobsTest.test_results",
    "M50 X41": _P + "AcquaintanceTest.test_servers_know_each_other_only_if_that_is_wanted",
    "M51 X16 V10": _P + "RealTest.test_idle_servers_go_and_come_back_with_the_next_job " + _P
    + "IdleTest.test_the_client_is_closed_after_twice_the_time_and_hears_why",
    "Y14": "test_dispycos_cluster.EndsTest.test_what_a_dead_server_had_begun_is_known",
    # 13.1 options of the node program that have to do with clients
    "O14": "test_node_state.StopTest.test_serve_limit_stops_after_the_last_client "
    "test_node_state.ClientsTest.test_serve_none",
    "O15 O16 O17 X32": _O + "HoursTest.test_phases " + _N + "ServiceTest.test_hours",
    "O18": _O + "ValuesTest.test_every_spelling_of_the_documents_is_taken",
    "O21": "test_node_state.IdleTest.test_a_client_that_runs_nothing_loses_the_node " + _P
    + "RealTest.test_a_node_takes_itself_back_from_an_idle_client",
    "O22": "test_node_announcement.PingsTest.test_at_intervals_while_it_is_free",
    "O24 X34": _N + "ServiceTest.test_clean_ends_the_node_before " + _N + "ServiceTest.test_clean_ends_nothing_but_nodes",
    "O26": _P + "AcquaintanceTest.test_servers_of_nodes_that_discover_peers_find_each_other",
    "O27 O28 X35": _O + "ConfigTest.test_what_is_saved_comes_back "
    + _O + "ConfigTest.test_command_line_wins_then_the_environment",
    # 14 options of the scheduler program
    "Q09 Q10": _C + "SchedulerOptionsTest.test_what_is_saved_comes_back",
    "Q15": _P + "AcquaintanceTest.test_a_scheduler_program_has_nodes_announce_it "
    + _P + "AcquaintanceTest.test_a_node_announces_the_client_to_the_nodes_of_its_network "
    "test_node_lan.NodeTest.test_a_node_announces_the_client_on_its_own_network",
    "Q16 Q19": _C + "SharedSchedulerTest.test_options",
    "Q17": _P + "PulseTest.test_a_client_says_how_often_nodes_are_searched_for",
    "Q18": _P + "RealTest.test_an_idle_client_leaves_the_queue_of_a_shared_scheduler " + _C
    + "SharedSchedulerTest.test_options",
    # 1.3 old names; 20 examples
    "X02 X03 X04 X49": _C + "ProgramTest.test_old_names",
    "dispycos_client1 dispycos_client2 discoro_client1": _C + "ProgramTest.test_example_client",
    "dispycos_client3": _C + "ProgramTest.test_example_messages",
    "dispycos_client7": _C + "ProgramTest.test_example_status",
}
"""Row ids, as in the specification (several share an entry) -> names of tests below `tests`, with blanks between."""
