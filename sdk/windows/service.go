// Command psx-service lets Windows run psx-peer.exe, which stands beside it, as a service: its owner installs, starts, stops
// and removes it. It never starts by itself, and Windows shows it in its list of services.
//
// This file holds the rules and runs anywhere, so that they are tested anywhere; service_windows.go speaks to Windows.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

const (
	name        = "psx-peer"
	displayName = "psx peer (shares this internet connection)"
	description = "Shares this machine's internet connection through psx while it runs, as its owner agreed. Stopping it ends that at once."
	peerName    = "psx-peer.exe"
	usage       = `psx-service install FLAGS OF psx-peer | start | stop | remove
Example: psx-service install -api https://api.example -name office -key-file C:\ProgramData\psx\key -accept-terms VERSION`

	exitNotStarted = 100 // beside the exit statuses of the peer itself
	exitKilled     = 101
)

// services is the system's list of services, as far as this one needs it.
type services interface {
	create(executable string, arguments []string) error
	start() error
	running() (bool, error)
	stop() error // once it stands still
	remove() error
}

// order does what the owner asks for.
func order(words []string, executable string, system services) error {
	if len(words) == 0 {
		return errors.New(usage)
	}
	switch word, rest := words[0], words[1:]; {
	case word == "install":
		return install(rest, executable, system)
	case len(rest) > 0:
		return errors.New(usage)
	case word == "start":
		return system.start()
	case word == "stop":
		return system.stop()
	case word == "remove":
		return uninstall(system)
	}
	return errors.New(usage)
}

// install wants what a service cannot ask for later, and no secret where every user of the machine can read it.
func install(flags []string, executable string, system services) error {
	peer := beside(executable)
	if _, err := os.Stat(peer); err != nil {
		return fmt.Errorf("%s is missing: it belongs beside %s", peer, filepath.Base(executable))
	}
	if given(flags, "key") {
		return errors.New("-key: every user of this machine can read how a service is started; give -key-file")
	}
	if !given(flags, "accept-terms") {
		return errors.New("-accept-terms is missing: a service cannot ask. Start psx-peer.exe in a window to read the terms")
	}
	return system.create(executable, append([]string{"run"}, flags...))
}

// uninstall stops a service that runs: one that is only marked for deletion would go on sharing.
func uninstall(system services) error {
	runs, err := system.running()
	if err != nil {
		return err
	}
	if runs {
		if err := system.stop(); err != nil {
			return err
		}
	}
	return system.remove()
}

// given tells whether a flag stands among flags, with one dash or two, with or without its value.
func given(flags []string, flag string) bool {
	return slices.ContainsFunc(flags, func(word string) bool {
		plain, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
		return strings.HasPrefix(word, "-") && plain == flag
	})
}

func beside(executable string) string { return filepath.Join(filepath.Dir(executable), peerName) }

// supervise runs the peer until the system wants it to stop, or until it ends by itself. The answer is 0, or the peer's own
// exit status. Ending its process ends its tunnels.
func supervise(peer *exec.Cmd, stop <-chan struct{}, runs func()) uint32 {
	if err := peer.Start(); err != nil {
		return exitNotStarted
	}
	ended := make(chan error, 1)
	go func() { ended <- peer.Wait() }()
	runs()
	select {
	case err := <-ended:
		return statusOf(err)
	case <-stop:
		_ = peer.Process.Kill()
		<-ended
		return 0
	}
}

func statusOf(err error) uint32 {
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return uint32(exit.ExitCode())
	}
	return exitKilled
}

func main() {
	executable, err := os.Executable()
	if err == nil {
		err = act(os.Args[1:], executable)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "psx-service:", err)
		os.Exit(1)
	}
}
