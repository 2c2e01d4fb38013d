import type { ReactNode } from 'react';

interface NoticeProps {
  tone: 'plain' | 'good' | 'bad';
  title: string;
  children?: ReactNode;
  /** Buttons. */
  actions?: ReactNode;
}

/** Something that the viewer should know, with what to do about it. Read out when it appears. */
export function Notice({ tone, title, children, actions }: NoticeProps) {
  return (
    <div className={`notice ${tone}`} role={tone === 'bad' ? 'alert' : 'status'}>
      <div className="notice-text">
        <p className="notice-title">{title}</p>
        {children}
      </div>
      {actions && <div className="actions">{actions}</div>}
    </div>
  );
}
