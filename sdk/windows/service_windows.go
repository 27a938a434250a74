package main

import (
	"errors"
	"fmt"
	"os/exec"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"
)

const (
	account    = `NT AUTHORITY\LocalService` // may little on this machine, and has a profile of its own for the state file
	stopWithin = 20 * time.Second
	stopCheck  = 100 * time.Millisecond
)

// act is what a call of the program means: Windows says "run", its owner the rest.
func act(words []string, executable string) error {
	if len(words) > 0 && words[0] == "run" {
		return svc.Run(name, service{executable, words[1:]})
	}
	manager, err := mgr.Connect()
	if err != nil {
		return fmt.Errorf("%w (an administrator's prompt is needed)", err)
	}
	defer manager.Disconnect()
	return order(words, executable, system{manager})
}

// service answers Windows for the peer.
type service struct {
	executable string
	flags      []string
}

func (s service) Execute(_ []string, requests <-chan svc.ChangeRequest, status chan<- svc.Status) (bool, uint32) {
	status <- svc.Status{State: svc.StartPending}
	peer := exec.Command(beside(s.executable), s.flags...)
	stop, ended := make(chan struct{}), make(chan uint32, 1)
	go func() {
		ended <- supervise(peer, stop, func() {
			endWithUs(peer)
			status <- svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown}
		})
	}()
	stopping := false
	for {
		select {
		case code := <-ended:
			return code != 0, code
		case request := <-requests:
			switch request.Cmd {
			case svc.Interrogate:
				status <- request.CurrentStatus
			case svc.Stop, svc.Shutdown:
				status <- svc.Status{State: svc.StopPending}
				if !stopping {
					close(stop)
				}
				stopping = true
			}
		}
	}
}

// endWithUs lets Windows end the peer when this process ends, however that happens: nothing goes on sharing unseen.
func endWithUs(peer *exec.Cmd) {
	job, err := windows.CreateJobObject(nil, nil)
	if err != nil {
		return
	}
	limits := windows.JOBOBJECT_EXTENDED_LIMIT_INFORMATION{}
	limits.BasicLimitInformation.LimitFlags = windows.JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
	_, err = windows.SetInformationJobObject(
		job, windows.JobObjectExtendedLimitInformation, uintptr(unsafe.Pointer(&limits)), uint32(unsafe.Sizeof(limits)),
	)
	if err != nil {
		return
	}
	process, err := windows.OpenProcess(windows.PROCESS_SET_QUOTA|windows.PROCESS_TERMINATE, false, uint32(peer.Process.Pid))
	if err != nil {
		return
	}
	defer windows.CloseHandle(process)
	_ = windows.AssignProcessToJobObject(job, process) // the job's handle stays open as long as this process
}

// system is the list of services of Windows.
type system struct{ manager *mgr.Mgr }

func (s system) create(executable string, arguments []string) error {
	made, err := s.manager.CreateService(name, executable, mgr.Config{
		StartType: mgr.StartManual, DisplayName: displayName, Description: description, ServiceStartName: account,
	}, arguments...)
	if err != nil {
		return err
	}
	return made.Close()
}

func (s system) with(do func(*mgr.Service) error) error {
	found, err := s.manager.OpenService(name)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer found.Close()
	return do(found)
}

func (s system) start() error {
	return s.with(func(found *mgr.Service) error { return found.Start() })
}

func (s system) running() (runs bool, err error) {
	err = s.with(func(found *mgr.Service) error {
		status, err := found.Query()
		runs = status.State != svc.Stopped
		return err
	})
	return runs, err
}

func (s system) stop() error {
	return s.with(func(found *mgr.Service) error {
		status, err := found.Control(svc.Stop)
		for end := time.Now().Add(stopWithin); err == nil && status.State != svc.Stopped; status, err = found.Query() {
			if time.Now().After(end) {
				return errors.New("it does not stop")
			}
			time.Sleep(stopCheck)
		}
		return err
	})
}

func (s system) remove() error {
	return s.with(func(found *mgr.Service) error { return found.Delete() })
}
