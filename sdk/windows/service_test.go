package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// list remembers what was asked of the system.
type list struct {
	asked     []string
	arguments []string
	runs      bool
	fails     error
}

func (l *list) create(_ string, arguments []string) error {
	l.asked, l.arguments = append(l.asked, "create"), arguments
	return nil
}
func (l *list) start() error           { l.asked = append(l.asked, "start"); return nil }
func (l *list) running() (bool, error) { return l.runs, nil }
func (l *list) stop() error            { l.asked = append(l.asked, "stop"); return l.fails }
func (l *list) remove() error          { l.asked = append(l.asked, "remove"); return nil }

func installed(t *testing.T) string {
	t.Helper()
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, peerName), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(folder, "psx-service.exe")
}

var agreed = []string{"-api", "https://api.example", "-key-file", "key", "--accept-terms=2026-11"}

func TestAnOwnerInstallsStartsStopsAndRemoves(t *testing.T) {
	system, executable := &list{}, installed(t)
	for _, words := range [][]string{append([]string{"install"}, agreed...), {"start"}, {"stop"}, {"remove"}} {
		if err := order(words, executable, system); err != nil {
			t.Fatalf("%v: %v", words, err)
		}
	}
	if want := []string{"create", "start", "stop", "remove"}; !slices.Equal(system.asked, want) {
		t.Fatalf("asked %v", system.asked)
	}
	if want := append([]string{"run"}, agreed...); !slices.Equal(system.arguments, want) {
		t.Fatalf("installed with %v", system.arguments)
	}
}

func TestARemovalStopsWhatRunsAndLeavesWhatDoesNotStop(t *testing.T) {
	system := &list{runs: true}
	if err := order([]string{"remove"}, "", system); err != nil || !slices.Equal(system.asked, []string{"stop", "remove"}) {
		t.Fatal(system.asked, err)
	}
	stuck := &list{runs: true, fails: errors.New("it does not stop")}
	if err := order([]string{"remove"}, "", stuck); err == nil || slices.Contains(stuck.asked, "remove") {
		t.Fatal(stuck.asked, err)
	}
}

func TestNothingIsInstalledWithoutAgreementOrWithASecretInSight(t *testing.T) {
	executable := installed(t)
	for said, flags := range map[string][]string{
		"-accept-terms": {"-api", "https://api.example", "-key-file", "key"},
		"-key:":         append([]string{"-key", "psx_0"}, agreed...),
		"every user":    append([]string{"--key=psx_0"}, agreed...),
	} {
		system := &list{}
		err := order(append([]string{"install"}, flags...), executable, system)
		if err == nil || !strings.Contains(err.Error(), said) || len(system.asked) > 0 {
			t.Errorf("%v: %v, asked %v", flags, err, system.asked)
		}
	}
	elsewhere := filepath.Join(t.TempDir(), "psx-service.exe")
	if err := order(append([]string{"install"}, agreed...), elsewhere, &list{}); err == nil {
		t.Error("installed without a peer")
	}
	for _, words := range [][]string{nil, {"dance"}, {"stop", "now"}} {
		if err := order(words, executable, &list{}); err == nil {
			t.Errorf("%v did something", words)
		}
	}
}

// TestMain lets this program stand for a peer.
func TestMain(m *testing.M) {
	switch os.Getenv("PSX_TEST_PEER") {
	case "stays":
		time.Sleep(time.Minute)
	case "refuses":
		os.Exit(2)
	case "ends":
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func peer(how string) *exec.Cmd {
	command := exec.Command(os.Args[0])
	command.Env = append(os.Environ(), "PSX_TEST_PEER="+how)
	return command
}

func TestAStopEndsThePeer(t *testing.T) {
	stop, command := make(chan struct{}), peer("stays")
	if code := supervise(command, stop, func() { close(stop) }); code != 0 {
		t.Fatal(code)
	}
	if command.ProcessState == nil {
		t.Fatal("the peer goes on")
	}
}

func TestAPeerThatEndsByItselfEndsItsServiceWithItsStatus(t *testing.T) {
	killed := peer("stays")
	for _, row := range []struct {
		command *exec.Cmd
		runs    func()
		code    uint32
	}{
		{peer("ends"), func() {}, 0},
		{peer("refuses"), func() {}, 2},
		{killed, func() { _ = killed.Process.Kill() }, exitKilled},
		{exec.Command(filepath.Join(t.TempDir(), peerName)), func() { t.Error("it never ran") }, exitNotStarted},
	} {
		if code := supervise(row.command, nil, row.runs); code != row.code {
			t.Errorf("%d, not %d", code, row.code)
		}
	}
}
