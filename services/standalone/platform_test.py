from services.standalone.platform import environment_of


def test_the_processes_beside_the_platform_are_told_their_settings_and_nothing_else() -> None:
    ours = {
        "HOME": "/home/ada",
        "LEPTON_API_KEY": "secret",
        "LEPTON_GATEWAY_LIMITS__API_RATE": "10/second",
        "LEPTON_PLATFORM_METRICS_LISTEN": "127.0.0.1:9464",
        "LEPTON_PLATFORM_TELEMETRY_SAMPLE": "0.01",
        "LEPTON_TRAINING_KEEP_DAYS": "7",
    }
    told = {"HOME": "/home/ada", "LEPTON_PLATFORM_TELEMETRY_SAMPLE": "0.01", "LEPTON_PLATFORM_LOG_LEVEL": "debug"}
    assert environment_of("gateway", ours, "debug") == {**told, "LEPTON_GATEWAY_LIMITS__API_RATE": "10/second"}
    assert environment_of("worker", ours, "debug") == {**told, "LEPTON_TRAINING_KEEP_DAYS": "7"}
